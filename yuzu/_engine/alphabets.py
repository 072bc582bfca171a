"""Alphabets of sequences, each in the order of its channels."""

DNA = "ACGT"
LUA_DNA = "AGCT"  # models trained in Lua Torch and converted read this order: DeepSEA, Beluga
RNA = "ACGU"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
IUPAC = "NRYSWKMBDHV"  # letters that stand for more than one base


def unknown_letter(alphabet: str) -> str:
    """The character that is read as an all-zero column: N, or X if N is in the alphabet (proteins)."""
    return next((c for c in "NX" if c not in alphabet), "")
