"""``yuzu variants``: from a file of variants to a table of scores, which an interrupted job goes on with.

Pieces of the table are written whole, one file each, into the folder ``OUT.parts``, and joined at the end. The file
``OUT.job`` says which job they belong to.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from yuzu._engine.checks import check_device
from yuzu._engine.files import written_whole
from yuzu._engine.progress import tqdm
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.version import __version__
from yuzu.command_line.model import load_models, load_named, load_pick
from yuzu.command_line.options import ALPHABETS
from yuzu.errors import YuzuError, one_line
from yuzu.precompute import precompute
from yuzu.runs.call import add_weights
from yuzu.variants import read, score
from yuzu.variants.table import pandas

_SETTINGS = ("target", "indels", "share", "predictions", "reverse_complement")
_RUN = ("batch_size", "device")  # with others the same job goes on
_JOB = ("model", "width", "schema", "alphabet")
_PICKS = ("counts", "profile", "func")
_FILES = ("variants", "genome", "peaks", "precomputation")


def run_variants(options: argparse.Namespace) -> None:
    """Run ``yuzu variants``."""
    try:
        pd = pandas()
    except ImportError as error:
        raise YuzuError(str(error)) from error
    _check(options)
    table = read(options.variants, options.schema)
    models = load_models(options.model, options.weights)
    call = _Call(options, models, pd)
    job = _job(options, models)
    at_once = _begun(options.out, job)
    if options.out.exists():
        print(f"{len(table)} variants in {options.out}, as before")
        return
    call.scores(table[:0])  # what is wrong with the options is said now
    if at_once is None:
        at_once = options.at_once
        with written_whole(_beside(options.out, ".job")) as note:
            note.write_text(json.dumps({"yuzu": __version__, "at_once": at_once, "job": job}))
    parts = _beside(options.out, ".parts")
    parts.mkdir(exist_ok=True)
    given = [table[first : first + at_once] for first in range(0, max(len(table), 1), at_once)]
    paths = [parts / f"{number:08d}.tsv" for number in range(len(given))]
    ready = sum(len(some) for some, path in zip(given, paths, strict=True) if path.exists())
    with tqdm(total=len(table), initial=ready, disable=options.quiet, unit="variant") as bar:
        for some, path in zip(given, paths, strict=True):
            if not path.exists():
                _write(call.scores(some), path)
                bar.update(len(some))
    statuses = _join(paths, options.out, pd)
    shutil.rmtree(parts)
    print(f"{len(table)} variants in {options.out}" + "".join(f", {n} {status}" for status, n in statuses.items()))


def _check(options: argparse.Namespace) -> None:
    """Refuse files that are missing, and numbers and names of files that cannot be."""
    for name in _FILES:
        path = getattr(options, name)
        if path is not None and not path.is_file():
            raise YuzuError(f"--{name}: there is no file {path}")
    for name in ("at_once", "width"):
        if getattr(options, name) < 1:
            raise YuzuError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if not options.out.name.endswith((".tsv", ".tsv.gz", ".parquet")):
        raise YuzuError(f"--out: got {options.out}, want a name that ends in .tsv, .tsv.gz or .parquet")
    if options.out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise YuzuError(f"--out: {options.out} needs pyarrow: pip install pyarrow; or give a name that ends in .tsv")
    if not options.out.absolute().parent.is_dir():
        raise YuzuError(f"--out: there is no folder {options.out.parent}")
    if options.out.is_dir():
        raise YuzuError(f"--out: {options.out} is a folder; give a file in it")
    check_device(options.device)


class _Call:
    """The call of `yuzu.variants.score` that the options make, with models and functions loaded."""

    def __init__(self, options: argparse.Namespace, models: list[torch.nn.Module], pd: Any) -> None:
        self._options, self._models = options, models
        self._settings: dict[str, Any] = {name: getattr(options, name) for name in (*_SETTINGS, *_RUN)}
        self._settings.update({name: load_pick(f"--{name}", getattr(options, name)) for name in _PICKS})
        named = [load_named("--scores", name) if ":" in name else name for name in options.scores]
        peaks = None if options.peaks is None else _read_peaks(options.peaks, pd)
        self._settings.update(scores=named, peaks=peaks, alphabet=ALPHABETS[options.alphabet])
        self._made: Precomputation | None = None
        if options.precomputation is not None:
            self._made = Precomputation.load(options.precomputation, options.device)

    def scores(self, table: Any) -> Any:
        """The scores of some rows."""
        options = self._options
        if self._made is None and len(table):
            self._made = precompute(self._models[0], options.width, device=options.device)
        return score(self._models, table, options.genome, options.width, self._made, **self._settings)


def _read_peaks(path: Path, pd: Any) -> Any:
    """Log counts: the only column, or a frame with a header."""
    try:
        found = pd.read_csv(path, sep="\t", header=None, comment="#")
        if found.shape[1] == 1 and found[0].dtype.kind in "fi":
            return found[0].to_numpy()
        return pd.read_csv(path, sep="\t")
    except (ValueError, UnicodeDecodeError) as error:
        raise YuzuError(f"--peaks: {path} cannot be read as a table ({one_line(error)})") from error


def _job(options: argparse.Namespace, models: list[torch.nn.Module]) -> str:
    """A text that differs between jobs whose scores differ: variants, genome, weights, options and functions."""
    digest = hashlib.sha256()
    for model in models:
        add_weights(digest, model)
    for path in [options.variants, *([] if options.peaks is None else [options.peaks])]:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    names = [*(getattr(options, name) for name in _PICKS), *options.scores, options.model]
    for file in sorted({name.rpartition(":")[0] for name in names if name is not None and ".py:" in name}):
        digest.update(Path(file).read_bytes())
    genome = options.genome.stat()
    settings = {name: getattr(options, name) for name in (*_SETTINGS, *_PICKS, "scores", *_JOB)}
    made = None if options.precomputation is None else hashlib.sha256(options.precomputation.read_bytes()).hexdigest()
    settings |= {"genome": [str(options.genome.resolve()), genome.st_size, genome.st_mtime_ns], "precomputation": made}
    return json.dumps({**settings, "digest": digest.hexdigest()}, sort_keys=True)


def _begun(out: Path, job: str) -> int | None:
    """Tell how many variants the pieces of a job hold that was begun; None if there is none. Refuse another's files."""
    note = _beside(out, ".job")
    if note.exists():
        try:
            known = json.loads(note.read_text())
            other, at_once = str(known["job"]), int(known["at_once"])
        except (ValueError, KeyError, TypeError) as error:
            raise YuzuError(f"--out: {note} is damaged; delete it, {out} and {_beside(out, '.parts')}") from error
        if other != job:
            raise YuzuError(
                f"--out: {out} is another job's (other variants, genome, model, weights or options); give another "
                f"file, or delete {note}, {out} and {_beside(out, '.parts')}"
            )
        return at_once
    for path in (out, _beside(out, ".parts")):
        if path.exists():
            raise YuzuError(f"--out: {path} is not of yuzu variants; give another file, or delete it")
    return None


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def _write(found: Any, path: Path) -> None:
    """Write a piece of the table, whole or not at all; ``-`` is an empty allele."""
    alleles = {name: found[name].replace("", "-") for name in ("ref", "alt")}
    with written_whole(path) as part:
        found.assign(**alleles).to_csv(part, sep="\t", index=False, na_rep="nan")


def _join(paths: list[Path], out: Path, pd: Any) -> dict[str, int]:
    """Write the whole table, and count the rows of each status."""
    texts = {name: str for name in ("chrom", "ref", "alt", "id", "status")}
    reading = {"sep": "\t", "dtype": texts, "keep_default_na": False, "na_values": ["nan"]}
    counts: dict[str, int] = {}
    for path in paths:
        for status, count in pd.read_csv(path, usecols=["status"], **reading)["status"].value_counts().items():
            counts[status] = counts.get(status, 0) + int(count)
    with written_whole(out) as part:
        if out.suffix == ".parquet":
            frame = pd.concat([pd.read_csv(path, **reading) for path in paths], ignore_index=True)
            alleles = {name: frame[name].replace("-", "") for name in ("ref", "alt")}
            frame.assign(**alleles).to_parquet(part, index=False)
            return counts
        with gzip.open(part, "wb") if out.suffix == ".gz" else open(part, "wb") as joined:
            for number, path in enumerate(paths):
                with open(path, "rb") as piece:
                    header = piece.readline()
                    if not number:
                        joined.write(header)
                    shutil.copyfileobj(piece, joined)
    return counts
