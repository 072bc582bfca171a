"""The commands themselves: from options to files."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_device, check_span
from yuzu._engine.progress import tqdm
from yuzu._engine.request import Selection
from yuzu._engine.run.scores import Outputs
from yuzu._engine.store.precomputation import Precomputation
from yuzu.attribution import hypothetical
from yuzu.command_line.inputs import read_input, read_sequences
from yuzu.command_line.model import load_model
from yuzu.command_line.options import ALPHABETS
from yuzu.command_line.scores_file import complete, lay_out, rows_left, write_windows, writing
from yuzu.errors import YuzuError
from yuzu.precompute import precompute
from yuzu.predict import predict
from yuzu.regions import write_bed
from yuzu.yuzu_ism import yuzu_ism


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


def run_ism(options: argparse.Namespace) -> None:
    """Run ``yuzu ism``."""
    try:
        import h5py
    except ImportError as error:
        raise YuzuError("--out: HDF5 files need h5py: pip install h5py") from error
    check_device(options.device)
    if options.at_once < 1:
        raise YuzuError(f"--at-once must be at least 1, got {options.at_once}")
    _check_folder(options.out)
    given = read_input(options)
    names, X = given.names, given.X
    model = load_model(options.model, options.weights)
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
    job = _job(options, model, names, X, made)
    left = rows_left(options.out, job, len(X))
    if options.out.exists():
        complete(options.out, given)
    if len(left):
        _check_selection(model, X, options)
    if len(left) and made is None:
        made = _precompute(model, X.shape[2], options)
    # the bar is closed before an error is printed, which would otherwise stand on its line
    with tqdm(total=len(X), initial=len(X) - len(left), disable=options.quiet, unit="sequence") as bar:
        for first in range(0, len(left), options.at_once):
            rows = left[first : first + options.at_once]
            scores = _scores(model, X[torch.from_numpy(rows)], made, options)
            with writing(options.out):
                if not options.out.exists():
                    lay_out(options.out, job, given, scores, ALPHABETS[options.alphabet])
                with h5py.File(options.out, "a") as file:  # open only while it is written to
                    file["scores"][rows] = scores
                    file.flush()
                    file["done"][rows] = True  # marked only after the scores are on disk
            bar.update(len(rows))
    if given.peaks is not None:
        write_bed(options.out.with_name(options.out.name + ".bed"), given.peaks)
        write_windows(options.out.with_name(options.out.name + ".windows.bed"), given.columns)
    print(f"{len(X)} sequences in {options.out}" + (", as before" if not len(left) else ""))


def _job(options: argparse.Namespace, model: torch.nn.Module, names: list[str], X: torch.Tensor, made: Any) -> str:
    """A text that differs between jobs whose scores differ: sequences, weights, options and precomputation."""
    digest = hashlib.sha256(X.numpy().tobytes())
    digest.update("\n".join(names).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):  # a module's get_extra_state may return anything
            continue
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = {name: getattr(options, name) for name in ("model", "output", "target", "alphabet", "start", "end")}
    if made is None and options.precision not in (None, "highest"):
        settings["precision"] = options.precision
    planned = None
    if made is not None:
        found = made.decisions  # its precision is not the one asked for if bfloat16 products are wrong here
        alpha = None if found.probing is None else found.probing.alpha
        planned = {"precision": found.precision, "conv": made.settings.conv, "alpha": alpha}
    return json.dumps({**settings, "precomputation": planned, "digest": digest.hexdigest()}, sort_keys=True)


def _precompute(model: torch.nn.Module, length: int, options: argparse.Namespace) -> Precomputation:
    settings = {"precision": options.precision or "highest", "device": options.device}
    return precompute(model, length, n_choices=len(ALPHABETS[options.alphabet]), **settings)


def _check_selection(model: torch.nn.Module, X: torch.Tensor, options: argparse.Namespace) -> None:
    """Refuse positions or a target that do not exist, before the time for planning is spent."""
    check_span(options.start, options.end, X.shape[2])
    Outputs(Selection(None, options.target)).leaves(predict(model, X[:1], device=options.device))


def _check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise YuzuError(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        raise YuzuError(f"--out: {out} is a folder; give a file in it")


def _scores(model: torch.nn.Module, X: torch.Tensor, made: Any, options: argparse.Namespace) -> np.ndarray:
    kind = "delta" if options.output == "hypothetical" else options.output
    settings = {name: getattr(options, name) for name in ("target", "start", "end", "device")}
    found = yuzu_ism(model, X, made, output=kind, **settings)
    if not isinstance(found, torch.Tensor):
        raise YuzuError(f"--output {options.output} needs a model that returns one tensor: use --output l2, or wrap it")
    return (hypothetical(found) if options.output == "hypothetical" else found).numpy()
