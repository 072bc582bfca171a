"""The commands themselves: from options to files."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from yuzu._engine.checks import check_device
from yuzu._engine.progress import tqdm
from yuzu._engine.store.precomputation import Precomputation
from yuzu.command_line.call import call_of
from yuzu.command_line.inputs import Input, read_input, read_sequences
from yuzu.command_line.model import load_model
from yuzu.command_line.options import ALPHABETS
from yuzu.command_line.runs import check_one_process, run_ism_to_store
from yuzu.command_line.scores_file import complete, lay_out, rows_left, write_windows, writing
from yuzu.errors import YuzuError
from yuzu.precompute import precompute
from yuzu.regions import write_bed
from yuzu.runs.call import Call, add_weights

AT_ONCE = 16  # sequences between two writes to an HDF5 file


def run_precompute(options: argparse.Namespace) -> None:
    """Run ``yuzu precompute``."""
    if (options.fasta is None) == (options.length is None):
        raise YuzuError("give either --fasta or --length")
    length = (
        options.length if options.length is not None else read_sequences(options.fasta, options.alphabet)[1].shape[2]
    )
    _check_folder(options.out)
    made = _precompute(load_model(options.model, options.weights), length, options)
    made.save(options.out)
    print(made.summary())
    print(f"written to {options.out}")


def run_ism(options: argparse.Namespace) -> int:
    """Run ``yuzu ism``."""
    if options.out.suffix == ".zarr":
        return run_ism_to_store(options)
    check_one_process(options)
    try:
        import h5py
    except ImportError as error:
        raise YuzuError("--out: HDF5 files need h5py: pip install h5py") from error
    check_device(options.device)
    options.at_once = AT_ONCE if options.at_once is None else options.at_once
    if options.at_once < 1:
        raise YuzuError(f"--at-once must be at least 1, got {options.at_once}")
    _check_folder(options.out)
    given = read_input(options)
    X = given.X
    call = call_of(options, len(given.kept))
    call = call.rows(given.kept)
    made = None
    if options.precomputation is not None:
        if not options.precomputation.is_file():
            raise YuzuError(
                f"--precomputation: there is no file {options.precomputation}; make it with yuzu precompute"
            )
        made = Precomputation.load(options.precomputation, options.device)
        if options.precision not in (None, made.settings.precision):
            raise YuzuError(
                f"--precision {options.precision}: {options.precomputation} was made with {made.settings.precision}; "
                f"leave --precision out, or make another with yuzu precompute --precision {options.precision}"
            )
    job = _job(options, call, given, made)
    left = rows_left(options.out, job, len(X))
    if options.out.exists():
        complete(options.out, given)
    if len(left):
        call.check(X)
    if len(left) and made is None:
        made = _precompute(call.models[0], X.shape[2], options, call.args)
    # the bar is closed before an error is printed, which would otherwise stand on its line
    with tqdm(total=len(X), initial=len(X) - len(left), disable=options.quiet, unit="sequence") as bar:
        for first in range(0, len(left), options.at_once):
            rows = left[first : first + options.at_once]
            scores, each = call.rows(rows).scores(X[torch.from_numpy(rows)], made)
            with writing(options.out):
                if not options.out.exists():
                    lay_out(options.out, job, given, (scores, each), ALPHABETS[options.alphabet])
                with h5py.File(options.out, "a") as file:  # open only while it is written to
                    file["scores"][rows] = scores
                    if each is not None:
                        file["scores_by_model"][rows] = each
                    file.flush()
                    file["done"][rows] = True  # marked only after the scores are on disk
            bar.update(len(rows))
    if given.peaks is not None:
        write_bed(options.out.with_name(options.out.name + ".bed"), given.peaks)
        write_windows(options.out.with_name(options.out.name + ".windows.bed"), given.columns)
    print(f"{len(X)} sequences in {options.out}" + (", as before" if not len(left) else ""))
    return 0


def _job(options: argparse.Namespace, call: Call, given: Input, made: Any) -> str:
    """A text that differs between jobs whose scores differ: sequences, weights, options and precomputation."""
    digest = hashlib.sha256(given.X.numpy().tobytes())
    digest.update("\n".join(given.names).encode())
    for model in call.models:
        add_weights(digest, model)
    settings = {name: getattr(options, name) for name in ("model", "output", "target", "alphabet", "start", "end")}
    for name in ("head", "func"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    if options.func is not None and ".py:" in options.func:
        digest.update(Path(options.func.rpartition(":")[0]).read_bytes())
    for array in call.args or ():
        digest.update(str((array.dtype, tuple(array.shape))).encode() + array.numpy().tobytes())
    if made is None and options.precision not in (None, "highest"):
        settings["precision"] = options.precision
    planned = None
    if made is not None:
        found = made.decisions  # its precision is not the one asked for if bfloat16 products are wrong here
        alpha = None if found.probing is None else found.probing.alpha
        planned = {"precision": found.precision, "conv": made.settings.conv, "alpha": alpha}
    return json.dumps({**settings, "precomputation": planned, "digest": digest.hexdigest()}, sort_keys=True)


def _precompute(
    model: torch.nn.Module, length: int, options: argparse.Namespace, args: tuple[torch.Tensor, ...] | None = None
) -> Precomputation:
    settings = {"precision": options.precision or "highest", "device": options.device}
    some = None if args is None else tuple(array[:2] for array in args)
    return precompute(model, length, n_choices=len(ALPHABETS[options.alphabet]), args=some, **settings)


def _check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise YuzuError(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        raise YuzuError(f"--out: {out} is a folder; give a file in it")
