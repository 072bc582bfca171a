"""The sequences that variants are scored on, one-hot, and the trials that they make: on either strand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from yuzu._engine.alphabets import IUPAC
from yuzu._engine.named_edits import NamedEdits
from yuzu._engine.store.trials import Pairs, Trials
from yuzu.sequence import one_hot_encode
from yuzu.variants.genome import Chromosomes
from yuzu.variants.places import SIDES, WIDEST, Group, Place, alternative

_COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))


class Trial(NamedTuple):
    """An alternative allele to compare with its reference; the flank on one side is where it was."""

    place: Place
    side: str


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences, and the trials on them, before a model's dtype is known.

    Attributes
    ----------
    X: torch.Tensor, shape=(B, 4, L), dtype=torch.int8
    rows: integer array, shape=(B,)
        The variant of the table whose other inputs each sequence has.
    edits: list of NamedEdits
        By width; numbered as ``trials``.
    pairs: Pairs
        Likewise.
    trials: list of Trial
    """

    X: torch.Tensor
    rows: np.ndarray
    edits: list[NamedEdits]
    pairs: Pairs
    trials: list[Trial]

    def of_model(self, dtype: torch.dtype, args: Sequence[torch.Tensor]) -> Trials:
        """The trials in a model's dtype, with the rows of its other inputs."""
        pairs = replace(self.pairs, X=self.pairs.X.to(dtype))
        return Trials(self.X.to(dtype), tuple(a[self.rows] for a in args), self.edits, pairs)

    def reverse_complement(self, alphabet: str) -> Sequences:
        """The other strand."""
        order = [alphabet.index(_COMPLEMENT[letter]) for letter in alphabet]
        letters, length = np.array([*order, len(order)]), self.X.shape[2]
        turned = [
            replace(e, position=length - e.position - e.width, letters=letters[e.letters[:, ::-1]]) for e in self.edits
        ]
        pairs = replace(self.pairs, X=self.pairs.X[:, order].flip(2))
        return Sequences(self.X[:, order].flip(2), self.rows, turned, pairs, self.trials)


def sequences_of(groups: Iterable[Group], genome: Chromosomes, length: int, alphabet: str, indels: str) -> Sequences:
    """Read the sequences of groups of variants, and encode them."""
    code = {letter: place for place, letter in enumerate(alphabet)}
    texts: list[str] = []
    rows: list[int] = []
    trials: list[Trial] = []
    written: dict[int, list[tuple[int, int, list[int], int]]] = {}
    compared: list[tuple[int, str, int]] = []
    for group in groups:
        row, text = len(texts), genome.read(group.chrom, group.start, group.start + length)
        texts.append(text)
        rows.append(group.members[0].row)
        for place in group.members:
            size = len(place.ref)
            if place.substitutes and 0 < size <= WIDEST:
                first, wide = place.pos - group.start, 1 << (size - 1).bit_length()
                wide = wide if wide <= length else size
                begin = min(first, length - wide)
                edited = text[begin:first] + place.alt + text[first + size : begin + wide]
                letters = [code.get(letter, len(alphabet)) for letter in edited]
                written.setdefault(wide, []).append((row, begin, letters, len(trials)))
                trials.append(Trial(place, "left"))
                continue
            for side in SIDES[indels]:
                compared.append((row, alternative(place, genome, length, side), len(trials)))
                trials.append(Trial(place, side))
    edits = []
    for _, some in sorted(written.items()):
        row_of, position, letters_of, number = (np.array(column, dtype=np.int64) for column in zip(*some, strict=True))
        edits.append(NamedEdits(row_of, position, letters_of, number))
    X = one_hot_encode(texts, alphabet, torch.int8, unknown=IUPAC)
    others = [text for _, text, _ in compared]
    paired = one_hot_encode(others, alphabet, torch.int8, unknown=IUPAC) if others else X[:0]
    numbers = [np.array([item[place] for item in compared], dtype=np.int64) for place in (0, 2)]
    return Sequences(X, np.array(rows), edits, Pairs(numbers[0], paired, numbers[1]), trials)
