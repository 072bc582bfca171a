"""placeholder"""


def export() -> None: ...
