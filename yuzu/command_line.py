"""``yuzu ism`` and ``yuzu precompute``: scores of the sequences of a FASTA file, or of regions, for batch jobs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import yuzu
from yuzu._engine.checks import OUTPUTS, check_device, check_span
from yuzu._engine.files import written_whole
from yuzu._engine.progress import hushed, tqdm
from yuzu._engine.request import Selection
from yuzu._engine.run.scores import Outputs
from yuzu._engine.settings import PRECISIONS
from yuzu.attribution import hypothetical
from yuzu.errors import YuzuError, one_line
from yuzu.predict import predict
from yuzu.regions import Regions, one_hot_regions, read_regions, write_bed
from yuzu.sequence import DNA, IUPAC, LUA_DNA, PROTEIN, RNA, one_hot_encode, read_fasta

ALPHABETS = {"dna": DNA, "agct": LUA_DNA, "rna": RNA, "protein": PROTEIN}
# letters that stand for several bases or amino acids; each is a column of zeros
UNKNOWN = {DNA: IUPAC, LUA_DNA: IUPAC, RNA: IUPAC, PROTEIN: "XBZJUO*"}
EXAMPLES = """
examples:
  yuzu precompute --model net.py:build --fasta peaks.fa --out net.yuzu
  yuzu ism --model net.py:build --weights net.pt --fasta peaks.fa --out scores.h5 --precomputation net.yuzu --target 0
  yuzu ism --model package.module:Net --weights net.safetensors --fasta peaks.fa --out scores.h5 --device cuda
  yuzu ism --model net.py:build --regions peaks.narrowPeak --genome hg38.fa --width 2114 --out scores.h5

net.py:build is a file and a function (or class) in it that is called without arguments and returns the model; the
weights are a state_dict, saved by torch.save or as safetensors. Sequences must all have one length. Regions are BED or
narrowPeak, windows of --width on their summits; those that run over a chromosome's end are left out, with a warning.

scores.h5 holds `scores` (n, C, end - start, ...), `sequences` (n, C, L), `names` (n,) and `done` (n,); each says what
it is in its attribute `description`. For --fasta `names` are the headers.

For --regions two things stand in a row: the window that was scored, --width letters on the summit, and the peak, the
line of the file that it was made for. They differ where the peak has another length or a summit beside its middle.
  window  `names` (chromosome:start-end), `chrom`, `start`, `end`, `strand` (- where --reverse-complement turned it)
  peak    `peak_name`, `peak_start`, `peak_end`, `peak_strand`, `summit`
Starts and summits are 0-based positions on the chromosome, ends are not included. Two files have the same rows in the
same order: scores.h5.bed the peaks' own lines, as fi-nemo and others read them, and scores.h5.windows.bed, with the
columns chrom, start, end, peak_name, 0, strand, peak_start, peak_end, summit.

A job that was interrupted goes on where it stopped when it is started again with the same arguments; a file of an
older version gets what it lacks.
"""

# What stands in each dataset of a file of scores
DESCRIPTIONS = {
    "scores": "scores of each letter at each position; a row is done where `done` is True",
    "sequences": "the sequences scored, one-hot, their letters in the order {alphabet}",
    "names": "the headers of the FASTA file",
    "done": "whether the row's scores are there",
}
DESCRIPTIONS_OF_REGIONS = {
    **DESCRIPTIONS,
    "names": "the window that was scored, chromosome:start-end, 0-based, the end not included",
    "chrom": "chromosome of the window that was scored, and of the peak",
    "start": "start of the window that was scored, 0-based",
    "end": "end of the window that was scored, not included",
    "strand": "strand that was scored, + or -",
    "summit": "the peak's summit, on which the window is centred: a 0-based position on the chromosome",
    "peak_name": "name of the peak in the file of regions",
    "peak_start": "start of the peak in the file of regions, 0-based",
    "peak_end": "end of the peak in the file of regions, not included",
    "peak_strand": "strand of the peak in the file of regions: +, - or . for none",
}


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    made = argparse.ArgumentParser(
        prog="yuzu",
        description="Exact, fast in-silico saturation mutagenesis of PyTorch sequence models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=yuzu.__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="{ism,precompute}")
    settings: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    ism = commands.add_parser("ism", help="score every substitution of every sequence", **settings)
    precompute = commands.add_parser("precompute", help="plan once for a model and a length, and keep it", **settings)
    for command in (ism, precompute):
        command.add_argument("--model", required=True, metavar="FILE.py:NAME", help="or MODULE:NAME; makes the model")
        command.add_argument("--weights", type=Path, metavar="FILE", help="its state_dict: .pt, .pth or .safetensors")
        command.add_argument("--alphabet", default="dna", choices=list(ALPHABETS), help="default: dna, ACGT")
        command.add_argument("--device", help="default: cuda where there is one, else cpu")
    ism.add_argument("--fasta", type=Path, metavar="FILE", help="sequences of one length, also gzipped")
    ism.add_argument("--regions", type=Path, metavar="FILE", help="or BED or narrowPeak, with --genome")
    ism.add_argument("--genome", type=Path, metavar="FILE", help="FASTA that --regions are of")
    ism.add_argument("--width", type=int, metavar="L", help="length of windows on the summits; default: the regions'")
    ism.add_argument("--reverse-complement", action="store_true", help="of --regions on the minus strand")
    ism.add_argument("--max-unknown", type=float, help="largest share of N in --regions; default: 1, any")
    ism.add_argument(
        "--out", required=True, type=Path, metavar="FILE.h5", help="scores; goes on with an unfinished one"
    )
    ism.add_argument("--precomputation", type=Path, metavar="FILE", help="made by yuzu precompute; default: made anew")
    ism.add_argument("--target", type=int, help="the output to score; default: all")
    ism.add_argument(
        "--output",
        default="l2",
        choices=[*OUTPUTS, "hypothetical"],
        help="l2: norm over the outputs (default); delta: mutant minus reference; prediction; hypothetical: delta less "
        "its mean over the letters, TF-MoDISco's input",
    )
    ism.add_argument("--start", type=int, help="first position to mutate; default: 0")
    ism.add_argument("--end", type=int, help="the position after the last, or counted from the end; default: all")
    ism.add_argument("--at-once", type=int, default=16, metavar="N", help="sequences between two writes; default: 16")
    ism.add_argument("--quiet", action="store_true", help="no progress bar")
    precompute.add_argument("--fasta", type=Path, metavar="FILE", help="for the length of its sequences")
    precompute.add_argument("--length", type=int, metavar="L", help="or the length itself")
    precompute.add_argument("--out", required=True, type=Path, metavar="FILE", help="the precomputation")
    ism.add_argument("--precision", choices=PRECISIONS, help="of products; default: the precomputation's, or highest")
    precompute.add_argument("--precision", default="highest", choices=PRECISIONS, help="of products; default: highest")
    return made


def load_model(place: str, weights: Path | None) -> torch.nn.Module:
    """The model that ``FILE.py:NAME`` or ``MODULE:NAME`` makes, with its weights."""
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise YuzuError(f"--model must be FILE.py:NAME or MODULE:NAME, got {place!r}")
    if where.endswith(".py") and not Path(where).is_file():
        raise YuzuError(f"--model: there is no file {where}")
    try:
        module = _imported(where)
    except (Exception, SystemExit) as error:  # whatever is in a module runs
        raise YuzuError(f"--model: cannot import {where}: {_told(error)}") from error
    if not hasattr(module, name):
        raise YuzuError(f"--model: {where} has no {name}")
    made = getattr(module, name)
    model = made if isinstance(made, torch.nn.Module) else _called(made, place)
    if not isinstance(model, torch.nn.Module):
        raise YuzuError(f"--model: {place} must make a torch.nn.Module, it returned {type(model).__name__}")
    if weights is not None:
        if not weights.is_file():
            raise YuzuError(f"--weights: there is no file {weights}")
        found = _read_weights(weights)
        try:
            model.load_state_dict(found)
        except Exception as error:  # a model may have a load_state_dict of its own
            raise YuzuError(f"--weights: {weights} does not fit the model: {' '.join(str(error).split())}") from error
    return model.eval()


def _imported(where: str) -> Any:
    """The module of a file or of a name."""
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))  # as `python -m yuzu` has it, and the command `yuzu` has not
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    ours = sys.modules.setdefault(spec.name, module) is module
    sys.path.insert(0, str(Path(where).resolve().parent))  # what it imports lies beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if ours:  # half a module is none
            sys.modules.pop(spec.name, None)
        raise
    return module


def _told(error: BaseException) -> str:
    """An error of the user's own code on one line, with the line of theirs that raised it."""
    kind, own = type(error).__name__, ""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind}: {error.msg} ({error.filename}, line {error.lineno})"
    others = Path(__file__).parent, Path(traceback.__file__).parent  # ours and Python's
    for frame in traceback.extract_tb(error.__traceback__):
        foreign = "site-packages" in frame.filename or any(Path(frame.filename).is_relative_to(one) for one in others)
        if not foreign and frame.line:  # of what is frozen into Python there is none
            own = f" ({frame.filename}, line {frame.lineno})"
    said = one_line(error)
    return f"{kind}{'' if said == kind else f': {said}'}{own}"


def _called(made: Any, place: str) -> Any:
    """What a function or class returns without arguments."""
    if not callable(made):
        raise YuzuError(f"--model: {place} must be a function or class that makes a model, got {type(made).__name__}")
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise YuzuError(
            f"--model: {place} is called without arguments, but needs some ({error}); name a function that passes them"
        ) from error
    except ValueError:  # it has no signature that Python knows of; the call will tell
        pass
    try:
        return made()
    except (Exception, SystemExit) as error:
        raise YuzuError(f"--model: {place} made no model: {_told(error)}") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise YuzuError(
                f"--weights: {path} cannot be read: it is not safetensors, or not whole ({error})"
            ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, with advice for programmers
        if "Unsupported global" in str(error) or "TorchScript" in str(error):
            raise YuzuError(
                f"--weights: {path} holds more than tensors, such as a whole model, and is not unpickled; save "
                "model.state_dict() and give that"
            ) from error
        why = f"{error}" if isinstance(error, OSError) else "torch.save did not write it, or not whole"
        raise YuzuError(f"--weights: {path} cannot be read: {why}") from error
    nested = found.get("state_dict") if isinstance(found, dict) else None  # as training frameworks keep it
    return nested if isinstance(nested, dict) else found


def read_sequences(path: Path, alphabet: str) -> tuple[list[str], torch.Tensor]:
    """Names and one-hot sequences of a FASTA file."""
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


class Input(NamedTuple):
    """What to score: names, one-hot sequences and, where they are windows on peaks, further columns and the peaks."""

    names: list[str]
    X: torch.Tensor
    columns: dict[str, np.ndarray]
    peaks: Regions | None


def read_input(options: argparse.Namespace) -> Input:
    """The sequences of a FASTA file, or windows of a genome."""
    if (options.fasta is None) == (options.regions is None):
        raise YuzuError("give either --fasta, or --regions with --genome")
    if options.fasta is not None:
        given = (options.genome, options.width, options.max_unknown, options.reverse_complement or None)
        if any(value is not None for value in given):
            raise YuzuError("--genome, --width, --max-unknown and --reverse-complement are for --regions")
        return Input(*read_sequences(options.fasta, options.alphabet), {}, None)
    if options.genome is None:
        raise YuzuError("--regions needs --genome, a FASTA file")
    for name in ("regions", "genome"):
        if not (path := getattr(options, name)).is_file():
            raise YuzuError(f"--{name}: there is no file {path}")
    if set(ALPHABETS[options.alphabet]) != set(DNA):
        raise YuzuError(f"--regions are DNA, got --alphabet {options.alphabet}")
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
    return Input([f"{chromosome}:{start}-{end}" for chromosome, start, end in places], found.X, columns, peaks)


def _check_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise YuzuError(f"--out: there is no folder {out.parent}")
    if out.is_dir():
        raise YuzuError(f"--out: {out} is a folder; give a file in it")


def run_precompute(options: argparse.Namespace) -> None:
    """``yuzu precompute``"""
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
    """``yuzu ism``"""
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
        made = yuzu.Precomputation.load(options.precomputation, options.device)
        if options.precision not in (None, made.settings.precision):
            raise YuzuError(
                f"--precision {options.precision}: {options.precomputation} was made with {made.settings.precision}; "
                f"leave --precision out, or make another with yuzu precompute --precision {options.precision}"
            )
    job = _job(options, model, names, X, made)
    left = _left(options.out, job, len(X))
    if options.out.exists():
        _complete(options.out, given)
    if len(left):
        _check_selection(model, X, options)
    if len(left) and made is None:
        made = _precompute(model, X.shape[2], options)
    # closed before an error is printed, which would stand behind the bar
    with tqdm(total=len(X), initial=len(X) - len(left), disable=options.quiet, unit="sequence") as bar:
        for first in range(0, len(left), options.at_once):
            rows = left[first : first + options.at_once]
            scores = _scores(model, X[torch.from_numpy(rows)], made, options)
            with _writing(options.out):
                if not options.out.exists():
                    _lay_out(options.out, job, given, scores, ALPHABETS[options.alphabet])
                with h5py.File(options.out, "a") as file:  # open only while there is something to write
                    file["scores"][rows] = scores
                    file.flush()
                    file["done"][rows] = True  # only what is safely there
            bar.update(len(rows))
    if given.peaks is not None:
        write_bed(options.out.with_name(options.out.name + ".bed"), given.peaks)
        write_windows(options.out.with_name(options.out.name + ".windows.bed"), given.columns)
    print(f"{len(X)} sequences in {options.out}" + (", as before" if not len(left) else ""))


def _precompute(model: torch.nn.Module, length: int, options: argparse.Namespace) -> yuzu.Precomputation:
    settings = {"precision": options.precision or "highest", "device": options.device}
    return yuzu.precompute(model, length, n_choices=len(ALPHABETS[options.alphabet]), **settings)


def _check_selection(model: torch.nn.Module, X: torch.Tensor, options: argparse.Namespace) -> None:
    """Refuse positions or a target that do not exist, before planning takes its time."""
    check_span(options.start, options.end, X.shape[2])
    Outputs(Selection(None, options.target)).leaves(predict(model, X[:1], device=options.device))


def _left(out: Path, job: str, count: int) -> np.ndarray:
    """The rows that are still to be scored; an error for a file that is not this job's."""
    import h5py

    if not out.exists():
        return np.arange(count)
    with _reading(out), h5py.File(out, "r") as file:
        other, done = file.attrs.get("job"), file["done"][:] if "done" in file else None
        good = done is not None and done.shape == (count,) and done.dtype == bool and len(file["scores"]) == count
    if other is not None and other != job:
        raise YuzuError(
            f"--out: {out} holds another job's scores (other sequences, model, weights or options); give another file, "
            "or delete it"
        )
    if other is None or done is None:
        raise YuzuError(f"--out: {out} is not a file of yuzu ism; give another file, or delete it")
    if not good:
        raise YuzuError(f"--out: {out} is damaged: `done` or `scores` has not {count} rows; delete it")
    return np.flatnonzero(~done)


@contextlib.contextmanager
def _reading(out: Path) -> Iterator[None]:
    """Say what is wrong with a file of scores, of which h5py says it in errors of many kinds."""
    try:
        yield
    except PermissionError as error:
        raise YuzuError(f"--out: no permission to read {out}; give another file") from error
    except BlockingIOError as error:
        raise YuzuError(f"--out: {out} is open in another program, or another job writes it; wait for that") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        why = one_line(error)
        raise YuzuError(f"--out: {out} is not HDF5, or damaged ({why}); delete it or give another file") from error


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say that a file of scores cannot be written, and why."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        why = "it is open in another program" if isinstance(error, BlockingIOError) else one_line(error)
        raise YuzuError(
            f"--out: {out} cannot be written: {why}; what is done stays done: start the same job again when it can"
        ) from error


def _complete(out: Path, given: Input) -> None:
    """Add columns that an older version did not write; an error where the file has others, of other peaks."""
    import h5py

    with _reading(out), h5py.File(out, "r") as file:
        kept = {name: file[name] for name in given.columns if name in file}
        kept = {name: c.asstr()[:] if h5py.check_string_dtype(c.dtype) else c[:] for name, c in kept.items()}
    for name, column in kept.items():
        if not np.array_equal(column, given.columns[name]):
            raise YuzuError(
                f"--out: {out} holds the same windows for other peaks (`{name}` differs); give another file, or delete "
                "it"
            )
    if missing := {name: column for name, column in given.columns.items() if name not in kept}:
        with _writing(out), h5py.File(out, "a") as file:
            _add_columns(file, missing)


def _scores(model: torch.nn.Module, X: torch.Tensor, made: Any, options: argparse.Namespace) -> np.ndarray:
    kind = "delta" if options.output == "hypothetical" else options.output
    settings = {name: getattr(options, name) for name in ("target", "start", "end", "device")}
    found = yuzu.yuzu_ism(model, X, made, output=kind, **settings)
    if not isinstance(found, torch.Tensor):
        raise YuzuError(f"--output {options.output} needs a model that returns one tensor: use --output l2, or wrap it")
    return (hypothetical(found) if options.output == "hypothetical" else found).numpy()


def _lay_out(out: Path, job: str, given: Input, scores: np.ndarray, alphabet: str) -> None:
    """Make the file, all but the scores; whole or not at all, for a job may be killed while many sequences are written
    and has to go on with what it finds.
    """
    import h5py

    n = len(given.X)
    with written_whole(out) as part, h5py.File(part, "w") as file:
        file.create_dataset("scores", (n, *scores.shape[1:]), scores.dtype, chunks=(1, *scores.shape[1:]))
        file.create_dataset("sequences", data=given.X.numpy())
        file.create_dataset("names", data=given.names, dtype=h5py.string_dtype())
        file.create_dataset("done", data=np.zeros(n, dtype=bool))
        for name, text in (DESCRIPTIONS_OF_REGIONS if given.columns else DESCRIPTIONS).items():
            if name in file:
                file[name].attrs["description"] = text.format(alphabet=alphabet)
        _add_columns(file, given.columns)
        file.attrs["yuzu"], file.attrs["job"] = yuzu.__version__, job


def _add_columns(file: Any, columns: dict[str, np.ndarray]) -> None:
    import h5py

    for name, column in columns.items():
        dtype = h5py.string_dtype() if column.dtype == object else column.dtype
        file.create_dataset(name, data=column, dtype=dtype).attrs["description"] = DESCRIPTIONS_OF_REGIONS[name]


def write_windows(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Write the windows that were scored as BED6, with the peak's own start, end and summit after it."""
    zeros = np.zeros(len(columns["start"]), dtype=np.int64)
    order = ("chrom", "start", "end", "peak_name", "", "strand", "peak_start", "peak_end", "summit")
    rows = zip(*(columns.get(name, zeros) for name in order), strict=True)
    with written_whole(path) as part:
        part.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def _job(options: argparse.Namespace, model: torch.nn.Module, names: list[str], X: torch.Tensor, made: Any) -> str:
    """What tells one job's scores from another's; of a precomputation, ``made``, what its numbers depend on."""
    digest = hashlib.sha256(X.numpy().tobytes())
    digest.update("\n".join(names).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):  # of a module's get_extra_state, whatever that returns
            continue
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    settings = {name: getattr(options, name) for name in ("model", "output", "target", "alphabet", "start", "end")}
    if made is None and options.precision not in (None, "highest"):
        settings["precision"] = options.precision
    planned = None
    if made is not None:
        found = made.decisions  # where bfloat16 products are far off, they are not what was asked for
        alpha = None if found.probing is None else found.probing.alpha
        planned = {"precision": found.precision, "conv": made.settings.conv, "alpha": alpha}
    return json.dumps({**settings, "precomputation": planned, "digest": digest.hexdigest()}, sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for bad input, with one line that says what to do."""
    options = parser().parse_args(arguments)
    pythons = warnings.formatwarning
    # Python's own adds the place, and a line of our source
    warnings.formatwarning = lambda message, *_, **__: f"yuzu {options.command}: warning: {message}\n"
    try:
        with hushed(getattr(options, "quiet", False)):
            {"ism": run_ism, "precompute": run_precompute}[options.command](options)
    except (YuzuError, OSError) as error:  # a file that cannot be opened or written, which the error names
        print(f"yuzu {options.command}: {error if isinstance(error, YuzuError) else one_line(error)}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = pythons
    return 0
