"""Sequences as text: one-hot encoding and back, and FASTA files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from yuzu._engine.alphabets import DNA as DNA
from yuzu._engine.alphabets import IUPAC as IUPAC
from yuzu._engine.alphabets import LUA_DNA as LUA_DNA
from yuzu._engine.alphabets import PROTEIN as PROTEIN
from yuzu._engine.alphabets import RNA as RNA
from yuzu._engine.alphabets import unknown_letter
from yuzu._engine.text_files import text_lines
from yuzu._engine.text_files import whole_number as whole_number
from yuzu.errors import YuzuError, shown

__all__ = [
    "DNA",
    "LUA_DNA",
    "PROTEIN",
    "RNA",
    "Fasta",
    "decode",
    "dna_order",
    "one_hot_encode",
    "read_fasta",
    "reorder_alphabet",
]


_INVALID = 255


def one_hot_encode(
    sequences: str | Sequence[str],
    alphabet: str | Sequence[str] = DNA,
    dtype: torch.dtype = torch.float32,
    unknown: str | None = None,
) -> torch.Tensor:
    """One-hot encode text, in upper or lower case.

    Parameters
    ----------
    sequences : str, or list or tuple of str
        One sequence, or several of one length.
    alphabet : str, or list or tuple of single characters, optional
        The characters in the order of the channels, such as `DNA`, `RNA` or `PROTEIN`. Default is "ACGT".
    dtype : torch.dtype, optional
        Default is torch.float32.
    unknown : str or None, optional
        Characters that become all-zero columns; "" for none. Default is None, which means "N", or "X" where
        the alphabet has an N of its own (proteins).

    Returns
    -------
    torch.Tensor
        `(C, L)` for a str and `(n, C, L)` for a list or tuple, `C` the length of the alphabet.

    Raises
    ------
    YuzuError
        If a character is neither in `alphabet` nor in `unknown`, lengths differ, or something is empty.

    Examples
    --------
    >>> one_hot_encode("AcN", dtype=torch.int8)
    tensor([[1, 0, 0],
            [0, 1, 0],
            [0, 0, 0],
            [0, 0, 0]], dtype=torch.int8)
    """
    letters, unknown_letters = _check_alphabet(alphabet, unknown)
    if not isinstance(dtype, torch.dtype):
        raise YuzuError(f"dtype: got {shown(dtype)}, want a torch.dtype")
    single = isinstance(sequences, str)
    items = _check_sequences([sequences] if isinstance(sequences, str) else sequences)

    text = "".join(items)
    # One byte per character from here on; what is not ASCII is marked as invalid below.
    data = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    table = np.full(256, _INVALID, dtype=np.uint8)
    for code, character in enumerate(letters):
        table[[ord(character), ord(character.lower())]] = code
    for character in unknown_letters:
        table[[ord(character), ord(character.lower())]] = len(letters)
    codes = table[data]
    if not text.isascii():
        codes[[i for i, c in enumerate(text) if not c.isascii()]] = _INVALID
    if codes.max() == _INVALID:
        item, position = divmod(int(codes.argmax()), len(items[0]))
        where = "" if single else f" of item {item}"
        beside = f" or {unknown_letters!r} for unknown" if unknown_letters else ""
        raise YuzuError(
            f"sequences: got {items[item][position]!r} at position {position}{where}, want "
            f"characters of {letters!r}{beside}, in either case"
        )

    codes = codes.reshape(len(items), -1)
    X = torch.empty((len(items), len(letters), codes.shape[1]), dtype=dtype)
    for code in range(len(letters)):
        torch.eq(torch.from_numpy(codes), code, out=X[:, code])
    return X[0] if single else X


def _check_alphabet(alphabet: str | Sequence[str], unknown: str | None) -> tuple[str, str]:
    """The alphabet and the unknown characters as upper-case strings."""
    listed = isinstance(alphabet, (str, list, tuple))
    single = listed and all(isinstance(c, str) and len(c) == 1 for c in alphabet)
    letters = "".join(alphabet).upper() if single else ""
    if not letters or not letters.isascii() or len(set(letters)) != len(letters):
        raise YuzuError(
            f"alphabet: got {shown(alphabet)}, want distinct ASCII characters such as 'ACGT', "
            "a lower-case letter being the same as its upper case"
        )
    if unknown is None:
        return letters, unknown_letter(letters)
    if not isinstance(unknown, str) or not unknown.isascii():
        raise YuzuError(f"unknown: got {shown(unknown)}, want a str of ASCII characters, or None")
    if shared := sorted(set(unknown.upper()) & set(letters)):
        raise YuzuError(f"unknown: got {shown(unknown)}, of which {shared[0]!r} is in the alphabet {letters!r}")
    return letters, unknown.upper()


def _check_sequences(sequences: Sequence[str]) -> Sequence[str]:
    if not isinstance(sequences, (list, tuple)):
        raise YuzuError(f"sequences: got {type(sequences).__name__}, want a str or a list or tuple of str")
    if not sequences:
        raise YuzuError("sequences: got an empty list, want at least one sequence")
    for i, item in enumerate(sequences):
        if not isinstance(item, str):
            raise YuzuError(f"sequences: got {type(item).__name__} as item {i}, want str")
        if not item:
            raise YuzuError(f"sequences: got an empty sequence as item {i}, want at least one character")
        if len(item) != len(sequences[0]):
            raise YuzuError(
                f"sequences: got length {len(item)} for item {i} and {len(sequences[0])} for "
                "item 0, want one length; cut or pad them, or encode them one at a time"
            )
    return sequences


def decode(
    X: torch.Tensor | np.ndarray, alphabet: str | Sequence[str] = DNA, unknown: str | None = None
) -> str | list[str]:
    """Text from a one-hot encoding: the inverse of `one_hot_encode`, in upper case.

    Parameters
    ----------
    X : torch.Tensor or numpy.ndarray
        `(C, L)` or `(n, C, L)`, any dtype: every column has a single 1, or zeros only.
    alphabet : str, or list or tuple of single characters, optional
        As for `one_hot_encode`. Default is "ACGT".
    unknown : str or None, optional
        Its first character is written for all-zero columns; with "" they raise an error. Default is None, as for
        `one_hot_encode`.

    Returns
    -------
    str or list of str
        A str for `(C, L)`, a list of `n` str for `(n, C, L)`.

    Raises
    ------
    YuzuError
        If `X` has another shape, or a column that is not one-hot.

    Examples
    --------
    >>> decode(one_hot_encode(["acgt", "NNTT"]))
    ['ACGT', 'NNTT']
    """
    letters, unknown_letters = _check_alphabet(alphabet, unknown)
    if not isinstance(X, torch.Tensor):
        array = np.array(X)  # a copy, for torch refuses flipped arrays and warns of read-only ones
        if array.dtype.kind not in "biuf":
            raise YuzuError(f"X: got {type(X).__name__} of {array.dtype}, want a tensor or array of numbers")
    values = X.detach().cpu() if isinstance(X, torch.Tensor) else torch.from_numpy(array)
    if values.ndim not in (2, 3) or values.shape[-2] != len(letters):
        raise YuzuError(
            f"X: got shape {tuple(values.shape)}, want ({len(letters)}, L) or "
            f"(n, {len(letters)}, L) for the alphabet {letters!r}"
        )
    hot = values == 1
    n_hot = hot.sum(-2)
    good = ((values == 0) | hot).all(-2) & (n_hot <= 1) & (n_hot >= (0 if unknown_letters else 1))
    if not good.all():
        *item, position = (~good).nonzero()[0].tolist()
        column = values.movedim(-2, -1)[~good][0].tolist()
        where = f" of item {item[0]}" if item else ""
        zeros = f" or zeros for {unknown_letters[0]!r}" if unknown_letters else ""
        raise YuzuError(f"X: got {column} at position {position}{where}, want a single 1 and zeros{zeros}")
    table = np.frombuffer((letters + unknown_letters[:1]).encode(), dtype=np.uint8)
    codes = torch.where(n_hot == 1, hot.to(torch.uint8).argmax(-2), len(letters)).numpy()
    texts = [row.tobytes().decode() for row in table[np.atleast_2d(codes)]]
    return texts if values.ndim == 3 else texts[0]


_Array = TypeVar("_Array", torch.Tensor, np.ndarray)


def reorder_alphabet(
    X: _Array, from_alphabet: str | Sequence[str], to_alphabet: str | Sequence[str], dim: int = -2
) -> _Array:
    """Put the channels of sequences or scores in the order of another alphabet.

    Most models read DNA in the order ACGT. Those trained in Lua Torch (DeepSEA, Beluga) read AGCT, `LUA_DNA`.

    Parameters
    ----------
    X : torch.Tensor or numpy.ndarray
        Sequences or scores, such as `(n, C, L)`, of any dtype. The channels are on axis `dim`.
    from_alphabet, to_alphabet : str, or list or tuple of single characters
        The present order of the channels, and the wanted one: the same characters, in either case.
    dim : int, optional
        The axis of the channels. Default is -2: `(C, L)` and `(n, C, L)`. Scores `(n, C, L, tracks)` need 1.

    Returns
    -------
    torch.Tensor or numpy.ndarray
        A copy, of the type, shape and dtype of `X`. Gradients flow through it.

    Raises
    ------
    YuzuError
        If the alphabets are not of the same characters, or `X` has no such axis or another number of channels.

    Examples
    --------
    >>> X = one_hot_encode("ACGTN", alphabet=LUA_DNA)
    >>> decode(reorder_alphabet(X, LUA_DNA, DNA))
    'ACGTN'
    """
    source, target = (_check_alphabet(alphabet, "")[0] for alphabet in (from_alphabet, to_alphabet))
    if sorted(source) != sorted(target):
        raise YuzuError(f"to_alphabet: got {shown(to_alphabet)}, want the characters of {source!r} in some order")
    if not isinstance(X, (torch.Tensor, np.ndarray)):
        raise YuzuError(f"X: got {type(X).__name__}, want a torch.Tensor or numpy.ndarray")
    if not -X.ndim <= dim < X.ndim or X.shape[dim] != len(source):
        raise YuzuError(
            f"X: got shape {tuple(X.shape)}, want {len(source)} channels on axis {dim} for the alphabet {source!r}"
        )
    order = [source.index(character) for character in target]
    if isinstance(X, np.ndarray):
        return np.take(X, order, axis=dim)
    return X.index_select(dim, torch.tensor(order, device=X.device))


def dna_order(alphabet: str | Sequence[str]) -> str:
    """Check that an alphabet holds the letters of DNA in some order, and return it as an upper-case str.

    Parameters
    ----------
    alphabet : str, or list or tuple of single characters
        Such as "ACGT", or "AGCT" for models trained in Lua Torch.

    Returns
    -------
    str
        The letters, such as "AGCT".

    Raises
    ------
    YuzuError
        If the alphabet has other letters.

    Examples
    --------
    >>> dna_order(["a", "g", "c", "t"])
    'AGCT'
    """
    letters = _check_alphabet(alphabet, "")[0]
    if sorted(letters) != sorted(DNA):
        raise YuzuError(f"alphabet: got {shown(alphabet)}, want the letters of DNA, {DNA!r}, in some order")
    return letters


class Fasta(NamedTuple):
    """The records of a FASTA file: a name and a sequence for each.

    Attributes
    ----------
    names : list of str
        Header lines, without ">" and surrounding blanks.
    sequences : list of str
        The sequences, each joined to one line, case kept.
    """

    names: list[str]
    sequences: list[str]


def read_fasta(path: str | os.PathLike[str]) -> Fasta:
    """Read a FASTA file, plain or gzipped (told from its first bytes, not from its name).

    Records may span lines, lines may end as on Windows, and blank lines are skipped.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    Fasta
        Named tuple `(names, sequences)` of two lists of str of the same length.

    Raises
    ------
    YuzuError
        If the file is empty, damaged or not FASTA, or a record has no sequence. The message names file and line.
    OSError
        If the file cannot be opened.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "peaks.fa"
    ...     _ = path.write_text(">first\\nACGT\\nAC\\n>second\\nTTTT\\n")
    ...     read_fasta(path)
    Fasta(names=['first', 'second'], sequences=['ACGTAC', 'TTTT'])
    """
    names: list[str] = []
    parts: list[list[str]] = []
    header_line = 1
    for number, text in text_lines(path, "FASTA"):
        line = text.strip()
        if line.startswith(">"):
            if parts and not parts[-1]:
                raise YuzuError(f"{path}, line {header_line}: record {names[-1]!r} has no sequence")
            names.append(line[1:].strip())
            parts.append([])
            header_line = number
        elif not parts:
            raise YuzuError(f"{path}, line {number}: not FASTA; got {line[:40]!r}, want a header starting with '>'")
        elif bad := re.search(r"[^A-Za-z*.\-]", line):
            raise YuzuError(
                f"{path}, line {number}: got {bad.group()!r}, want a line of sequence or a header starting with '>'"
            )
        else:
            parts[-1].append(line)
    if not parts:
        raise YuzuError(f"{path}, line 1: the file is empty, want FASTA with a header starting with '>'")
    if not parts[-1]:
        raise YuzuError(f"{path}, line {header_line}: record {names[-1]!r} has no sequence")
    return Fasta(names, ["".join(part) for part in parts])


def __dir__() -> list[str]:
    return sorted(__all__)
