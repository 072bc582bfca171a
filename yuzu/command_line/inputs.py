"""The sequences that ``--fasta``, or ``--regions`` and ``--genome``, name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from yuzu._engine.alphabets import DNA, IUPAC, LUA_DNA, PROTEIN, RNA
from yuzu.command_line.options import ALPHABETS
from yuzu.errors import YuzuError
from yuzu.regions import Regions, one_hot_regions, read_regions
from yuzu.sequence import one_hot_encode, read_fasta

# letters that stand for several bases or amino acids; each is a column of zeros
UNKNOWN = {DNA: IUPAC, LUA_DNA: IUPAC, RNA: IUPAC, PROTEIN: "XBZJUO*"}


class Input(NamedTuple):
    """Names and one-hot sequences to score, and which of those given they are; for windows on peaks also further
    columns, and the peaks.
    """

    names: list[str]
    X: torch.Tensor
    kept: np.ndarray
    columns: dict[str, np.ndarray]
    peaks: Regions | None


def read_input(options: argparse.Namespace) -> Input:
    """Read the sequences of a FASTA file, or windows of a genome."""
    check_input(options)
    if options.fasta is not None:
        names, X = read_sequences(options.fasta, options.alphabet)
        return Input(names, X, np.ones(len(X), dtype=bool), {}, None)
    alphabet = ALPHABETS[options.alphabet]
    try:
        unknown = 1.0 if options.max_unknown is None else options.max_unknown
        settings = (options.width, alphabet, torch.int8, options.reverse_complement, unknown)
        peaks = read_regions(options.regions)
        found = one_hot_regions(peaks, options.genome, *settings)
    except ImportError as error:
        raise YuzuError(str(error)) from error
    windows, peaks = found.regions, peaks[found.kept]
    columns = {
        "chrom": windows.chromosomes,
        "start": windows.starts,
        "end": windows.ends,
        "strand": np.where(windows.flipped, "-", "+").astype(object),
        "summit": windows.summits,
        "peak_name": peaks.names,
        "peak_start": peaks.starts,
        "peak_end": peaks.ends,
        "peak_strand": peaks.strands,
    }
    places = zip(windows.chromosomes, windows.starts, windows.ends, strict=True)
    return Input(
        [f"{chromosome}:{start}-{end}" for chromosome, start, end in places], found.X, found.kept, columns, peaks
    )


def check_input(options: argparse.Namespace) -> None:
    """Refuse options of the input that do not go together, or name no file."""
    if (options.fasta is None) == (options.regions is None):
        raise YuzuError("give either --fasta, or --regions with --genome")
    if options.fasta is not None:
        given = (options.genome, options.width, options.max_unknown, options.reverse_complement or None)
        if any(value is not None for value in given):
            raise YuzuError("--genome, --width, --max-unknown and --reverse-complement are for --regions")
        return
    if options.genome is None:
        raise YuzuError("--regions needs --genome, a FASTA file")
    for name in ("regions", "genome"):
        if not (path := getattr(options, name)).is_file():
            raise YuzuError(f"--{name}: there is no file {path}")
    if set(ALPHABETS[options.alphabet]) != set(DNA):
        raise YuzuError(f"--regions are DNA, got --alphabet {options.alphabet}")


def read_sequences(path: Path, alphabet: str) -> tuple[list[str], torch.Tensor]:
    """Read names and one-hot sequences from a FASTA file."""
    if not path.is_file():
        raise YuzuError(f"--fasta: there is no file {path}")
    names, sequences = read_fasta(path)
    for name, sequence in zip(names, sequences, strict=True):
        if len(sequence) != len(sequences[0]):
            raise YuzuError(
                f"--fasta: all sequences must have one length; {names[0]} has {len(sequences[0])} letters, {name} has "
                f"{len(sequence)}"
            )
    letters = ALPHABETS[alphabet]
    X = one_hot_encode(list(sequences), alphabet=letters, dtype=torch.int8, unknown=UNKNOWN[letters])
    return list(names), X
