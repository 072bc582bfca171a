"""Scores of variants: from a frame and a genome to the same frame with scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_choice, check_count, check_device
from yuzu._engine.genome import opened_genome
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Selection
from yuzu._engine.store.trials import Asked
from yuzu.errors import YuzuError, shown
from yuzu.sequence import dna_order
from yuzu.variants.genome import Chromosomes
from yuzu.variants.job import Found, Job, blocks, put_to_use
from yuzu.variants.places import SIDES, groups_of, place_of
from yuzu.variants.sequences import sequences_of
from yuzu.variants.table import rows_of, with_columns
from yuzu.variants.wanted import Wanted


def score(
    model: torch.nn.Module | Sequence[torch.nn.Module],
    table: Any,
    genome: Any,
    seq_len: int,
    precomputation: Any = None,
    *,
    args: tuple[Any, ...] | None = None,
    scores: Any = ("delta",),
    target: Any = None,
    func: Any = None,
    counts: Any = None,
    profile: Any = None,
    reverse_complement: bool = False,
    indels: str = "left",
    share: int = 0,
    peaks: Any = None,
    predictions: bool = False,
    alphabet: str | Sequence[str] = "ACGT",
    batch_size: int | None = None,
    device: Any = None,
    verbose: bool = False,
) -> Any:
    """Score what variants change in the model's output: substitutions of any length, insertions, deletions, mixed.

    Alleles are trimmed of what they share and moved to the leftmost spelling, so that two spellings of one variant
    score the same. The sequence is ``seq_len`` bases of the genome, with the variant's first base at ``seq_len // 2``.
    A substitution runs as a window on its reference, as in `yuzu_ism`: one forward pass and a little more. If one
    allele is longer than the other, both run as forward passes.

    Parameters
    ----------
    model: torch.nn.Module or list of them
        With several (folds) scores are averaged, and those of each are given, too.
    table: pandas.DataFrame
        As `read` gives it, or any with the columns ``chrom``, ``pos`` (counted from 0), ``ref`` and ``alt`` ("" or "-"
        for an empty allele); ``status`` is optional. Rows whose status is not "ok" are kept, and not scored.
    genome: str, os.PathLike, pyfaidx.Fasta, or mapping of str to str
        A FASTA file, or an opened one. Chromosomes are found with or without ``chr``.
    seq_len: int
        The length of the sequences that the model reads.
    precomputation: Precomputation, list of them, or None
        From `yuzu.precompute`; one for several models of one architecture. None makes one and keeps it.
    args: tuple of arrays or None
        The model's other inputs, with a row for each row of the table.
    scores: sequence of str or callable
        ``"delta"`` (default): alternative minus reference, of the outputs after ``func`` and ``target``;
        ``"max_abs"``: the largest absolute one. ``"logfc"``, ``"abs_logfc"``: difference of log counts over ln 2.
        ``"jsd"``: Jensen-Shannon distance, base 2, of the profiles' softmaxes. ``"active_allele_quantile"``: see
        ``peaks``. Products of these four, such as ``"abs_logfc_x_jsd"``. A function gets the outputs of the reference
        and the alternative alleles for a batch, after ``func`` and ``target``, and returns ``(n,)`` or ``(n, k)``; its
        column has its name.
    target, func
        As in `yuzu_ism`; for ``"delta"``, ``"max_abs"`` and functions.
    counts, profile: callable or None
        They pick log counts, ``(n,)`` or ``(n, 1)``, and profile logits, ``(n, length)`` or ``(n, strands, length)``,
        from the model's whole output. All strands of a profile are one distribution.
    reverse_complement: bool
        Average both strands: outputs, log counts and logits, before scores are taken. The other strand's profile is
        turned back, and two strands are changed over. Scores of functions are averaged themselves. Default False.
    indels: str
        The flank that stays where it is as an insertion or deletion moves the other: ``"left"`` (default),
        ``"right"``, or ``"average"``, the average of both scores. The genome fills up what moves in.
    share: int
        Substitutions of which the first letters are at most so many bases apart share one sequence, centred on them,
        and its forward pass; at most half of ``seq_len`` counts. Default 0: only those at the same place share one.
    peaks: array, shape=(peaks,), or pandas.DataFrame, or None
        Log counts of peaks (of a frame the column ``log_counts``, or its only numeric one). Adds ``quantile_ref`` and
        ``quantile_alt``, the shares of peaks below either allele's log counts, and ``active_allele_quantile``, the
        larger.
    predictions: bool
        Add ``ref_count`` and ``alt_count``, the log counts; without ``counts`` the outputs, ``ref_0``, ``alt_0``, ...
        (numbered even if there is one, since ``ref`` and ``alt`` are the alleles).
    alphabet: str
        The order of the channels. Default "ACGT".
    batch_size: int or None
        Sequences carried at once, at most. None picks it.
    device: str, torch.device or None
        None means CUDA when available, else the CPU.
    verbose: bool
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        The table's rows, in its order, with all its columns but those that have a score's name. ``status`` is "ok", or
        the reason why there are no scores: ``missing_chromosome``; ``outside``: a letter would come from beyond the
        chromosome; ``ref_mismatch``: the genome has other letters than ``ref``; ``too_long``: an allele does not fit
        into its sequence; and those of `read`. ``n_in_window`` is scored, with zeros for unknown letters. Scores are
        float64 columns, NaN where there are none: ``delta`` for one output, ``delta_0``, ``delta_1``, ... for several,
        in the order in which they are laid out. With several models ``delta`` is the mean, and ``delta_0``, ... each
        model's; ``delta_3_1`` is output 3 of model 1.

    Raises
    ------
    YuzuError
        For bad input, before any work; the message names column, row and value.
    PrecomputationError
        If ``precomputation`` was made for something else.
    ImportError
        If pandas is not installed; or pyfaidx, for a genome in a file.

    Notes
    -----
    ``jsd`` of an insertion or deletion leaves its own positions out of both profiles, as variant-scorer does. The
    profile is taken to lie in the middle of the sequence, a position for each base.

    Examples
    --------
    >>> import pandas, yuzu
    >>> from yuzu.examples import load_ctcf_model
    >>> genome = {"chr1": "ACGTTGCA" * 40}
    >>> table = pandas.DataFrame({"chrom": ["chr1", "1"], "pos": [160, 163], "ref": ["A", "T"], "alt": ["G", "TC"]})
    >>> found = yuzu.variants.score(load_ctcf_model(), table, genome, 100)
    >>> found[["pos", "status"]], bool(found["delta"].notna().all())
    (   pos status
    0  160     ok
    1  163     ok, True)
    """
    rows = rows_of(table)
    seq_len, share = check_count("seq_len", seq_len), check_count("share", share, least=0)
    check_choice("indels", indels, tuple(SIDES))
    for name, value in (("reverse_complement", reverse_complement), ("predictions", predictions)):
        if not isinstance(value, bool | np.bool_):
            raise YuzuError(f"{name} must be True or False, got {shown(value)}")
    wanted = Wanted.asked(scores, Selection(func, target), counts, profile, peaks, predictions)
    at_once = None if batch_size is None else check_count("batch_size", batch_size)
    asked = Asked(check_device(device), wanted.selection, wanted.selected, wanted.whole, at_once)
    job = Job(wanted, asked, seq_len, dna_order(alphabet), indels, share, bool(reverse_complement))
    used = put_to_use(job, model, precomputation, args, len(rows))
    found = Found(len(rows), [one.columns for one in used])
    with opened_genome(genome) as opened:
        chromosomes = Chromosomes(opened)
        placed = [place_of(i, row, chromosomes, seq_len, indels) for i, row in enumerate(rows)]
        places = [place for _, place in placed if place is not None]
        with tqdm(total=len(places), disable=not verbose, desc="variants", unit="variant") as bar:
            groups = groups_of(places, chromosomes, seq_len, share, apart=args is not None)
            for some in blocks(groups):
                sequences = sequences_of(some, chromosomes, seq_len, job.alphabet, indels)
                found.write([one.scores(sequences) for one in used], sequences.trials)
                bar.update(sum(len(group.members) for group in some))
    columns: dict[str, Any] = {"status": [status for status, _ in placed], **found.scores()}
    return with_columns(table, columns)
