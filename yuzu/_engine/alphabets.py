"""Alphabets of sequences, each in the order of its channels."""

DNA = "ACGT"


LUA_DNA = "AGCT"  # of models trained in Lua Torch and converted: DeepSEA, Beluga


RNA = "ACGU"


PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


IUPAC = "NRYSWKMBDHV"  # letters that stand for more than one base


def unknown_letter(alphabet: str) -> str:
    """The character that stands for no letter, an all-zero column: N, or X where N is one of the alphabet."""
    return next((c for c in "NX" if c not in alphabet), "")
