"""The errors that yuzu raises. Both are `ValueError`, so that one `except ValueError` catches them."""


class YuzuError(ValueError):
    """An argument, a file or a model that yuzu cannot work with; the message says which and what it wants."""


class PrecomputationError(YuzuError):
    """A precomputation that cannot be read, or that was made for something else than it is used with."""


class YuzuWarning(UserWarning):
    """Something is other than the user may expect: slower, or approximate, or regions were left out. Never a wrong
    result.
    """
