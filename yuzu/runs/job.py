"""The job of a run: its sequences, what tells it from others, and its store, which the first worker makes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yuzu._engine.checks import check_device
from yuzu._engine.settings import memory_for
from yuzu._engine.store.precomputation import Precomputation
from yuzu._engine.version import __version__
from yuzu.errors import PrecomputationError, YuzuError, warn_user
from yuzu.precompute import precompute
from yuzu.runs.call import Call, add_weights
from yuzu.runs.claims import POLL, Claims
from yuzu.runs.store import OWN, Draft, Store, write_block, writing
from yuzu.yuzu_ism import yuzu_ism

BLOCK = 64  # sequences in a block, at most: few files for many sequences, and seconds to minutes that a kill costs
BLOCKS = 64  # a short run has about so many blocks, so that workers end together
BLOCK_BYTES = 1 << 26

COLUMNS = {
    "name": "name of the sequence: of the peak or the FASTA record, else chromosome:start-end",
    "row": "the sequence's row among those given, from 0: regions without a window are left out",
    "chrom": "chromosome of the window that was scored",
    "start": "start of the window that was scored, 0-based",
    "end": "end of the window that was scored, not included",
    "strand": "strand that was scored, + or -",
    "summit": "the peak's summit, on which the window is centred: a 0-based position on the chromosome",
    "peak_start": "start of the peak in the file of regions, 0-based",
    "peak_end": "end of the peak in the file of regions, not included",
    "peak_strand": "strand of the peak in the file of regions: +, - or . for none",
    "line": "the peak's line in the file of regions",
}


@dataclass(frozen=True)
class Input:
    """The sequences of a run: those of ``X``, or windows of a genome, which are read when they are scored."""

    length: int
    letters: str
    columns: dict[str, np.ndarray]  # of the sequences that are scored
    given: int  # with those that are left out
    X: torch.Tensor | None = None
    genome: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)  # of the genome's chromosomes

    def __len__(self) -> int:
        return len(self.columns["row"])


@dataclass(frozen=True)
class Job:
    """The work of a run: the same with any workers.

    ``load`` makes the call, in each worker anew. ``identity`` are texts by name, which differ between jobs whose scores
    differ. ``digest`` is of what takes long to read.
    """

    load: Callable[[], Call]
    identity: dict[str, Any]
    precision: str | None = None  # of the precomputation, or highest
    precomputation: Path | None = None
    block: int | None = None
    threads: int = 1


def begin(path: Path, job: Job, call: Call, read: Callable[[], Input]) -> Store:
    """Make the store of a job, or find it made, whole; refuse another job's.

    Raises
    ------
    YuzuError
        If the store is of another job; the message names what differs. If something cannot be scored as asked.
    """
    identity = {**job.identity, **_of_models(call), "threads": job.threads, "precision": job.precision or "highest"}
    identity["precomputation"] = None if job.precomputation is None else _digest_of_file(job.precomputation)
    identity["device"] = device_name(call.settings["device"])
    identity = json.loads(json.dumps(identity))
    if not path.exists():
        _check_folder(path)
        with writing(path), _first(path) as first:
            if first:
                for left in path.parent.glob(f".{path.name}.*.part"):  # of a maker that was killed
                    shutil.rmtree(left, ignore_errors=True)
                _make(path, job, call, read(), identity)
    store = Store(path)
    differ = [name for name in {**store.job, **identity} if store.job.get(name) != identity.get(name)]
    if differ:
        told = ", ".join(f"{name} ({_brief(store.job.get(name))}, not {_brief(identity.get(name))})" for name in differ)
        raise YuzuError(f"{path} is another job's, with other {told}; give another path, or delete it")
    if not os.access(path / OWN, os.W_OK):
        raise YuzuError(f"{path} cannot be written: no permission")
    return store


@contextlib.contextmanager
def _first(path: Path) -> Iterator[bool]:
    """Tell whether this worker is to make the store. The others wait until it is there, or its maker is dead."""
    folder = path.with_name(f".{path.name}.begun")
    claims = None
    try:
        while claims is None and not path.exists():
            with contextlib.suppress(FileNotFoundError):  # another worker deleted the folder
                folder.mkdir(exist_ok=True)
                some = Claims(folder)
                claims = some if some.take(0) else None
            if claims is None:
                time.sleep(POLL)
        with contextlib.nullcontext() if claims is None else claims:
            yield claims is not None and not path.exists()
    finally:
        with contextlib.suppress(OSError):  # another worker's claim is there, or it was never made
            folder.rmdir()


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _check_folder(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise YuzuError(f"{path} cannot be made: there is no folder {path.parent}")
    if not os.access(folder, os.W_OK):
        raise YuzuError(f"{path} cannot be made: no permission to write in {path.parent}")


def _make(path: Path, job: Job, call: Call, given: Input, identity: dict[str, Any]) -> None:
    """Make the store: all but scores."""
    n, length = len(given), given.length
    C = len(given.letters)
    first = given.X[:1] if given.X is not None else torch.nn.functional.one_hot(torch.arange(length) % C, C).T[None]
    begin, end, _ = slice(call.settings["start"], call.settings["end"]).indices(length)
    for array in call.args or ():
        if len(array) != given.given:
            raise YuzuError(
                f"args: got an array of shape {tuple(array.shape)}, want {given.given} rows, one for each sequence"
            )
    call = call.rows(given.columns["row"])
    like = call.check(first)  # of one position
    row = math.prod(like.shape[1:]) * max(end - begin, 1) * like.itemsize * len(call.models)
    block = job.block or max(min(BLOCK, -(-n // BLOCKS), BLOCK_BYTES // max(row, 1)), 1)
    made = plan(job, call, length, C)
    draft = Draft(path, block, given.letters)
    try:
        made.save(draft.part / OWN / "plan.yuzu")
        axes = tuple(f"output_{i}" if like.ndim > 4 else "output" for i in range(like.ndim - 3))
        dims, shape = ("letter", "position", *axes), (C, end - begin, *like.shape[3:])
        text = _TEXTS[call.output].format(L=length)
        draft.blocks("scores", (n, *shape), like.dtype, ("sequence", *dims), text)
        if len(call.models) > 1:
            by_model = (n, len(call.models), *shape)
            draft.blocks(
                "scores_by_model", by_model, like.dtype, ("sequence", "model", *dims), f"{text}, of each model"
            )
        dtype = np.int8 if given.X is None else given.X.numpy().dtype
        text = "the sequences, one-hot; letters for several bases are columns of zeros"
        sequences = draft.blocks("sequences", (n, C, length), dtype, ("sequence", "letter", "base"), text)
        draft.blocks("failure", (n,), str, ("sequence",), "why the sequence has no scores; nothing if it has")
        draft.column("position", np.arange(begin, end), ("position",), "index of the scored position in the sequence")
        for name, column in given.columns.items():
            draft.column(name, column, ("sequence",), COLUMNS[name])
        if given.X is not None:
            for number, start in enumerate(range(0, n, block)):
                target = draft.part / "sequences" / f"c.{number}.0.0"
                write_block(sequences, target, draft.part / OWN / "parts", given.X[start : start + block].numpy())
        coordinates = [name for name in given.columns if name not in ("row", "line")]
        described = {
            "yuzu": __version__, "torch": torch.__version__, "alphabet": given.letters, "output": call.output,
            "units": "units of the model's output", "genome": given.genome, "chromosome_sizes": given.sizes,
            "model_class": identity["model_class"], "weights_sha256": identity["weights"], "job": identity,
        }  # fmt: skip
        draft.finish(identity, n, described, coordinates)
    except BaseException:
        draft.discard()
        raise


_TEXTS = {
    "l2": "Euclidean norm over the model's outputs of mutant minus reference",
    "delta": "the output for the mutant minus that for the reference; 0 at the reference letter",
    "prediction": "the output for the mutant; that for the reference at the reference letter",
    "hypothetical": "mutant minus reference, less its mean over the letters: TF-MoDISco's input",
}


def _of_models(call: Call) -> dict[str, Any]:
    weights, shape = hashlib.sha256(), hashlib.sha256()
    for model in call.models:
        add_weights(weights, model)
        shape.update(repr(model).encode())
    others = hashlib.sha256()
    for array in call.args or ():
        others.update(str((array.dtype, tuple(array.shape))).encode() + array.numpy().tobytes())
    kind = type(call.models[0])
    return {
        "model_class": f"{kind.__module__}.{kind.__qualname__}",
        "layers": shape.hexdigest(),
        "weights": weights.hexdigest(),
        "args": None if call.args is None else others.hexdigest(),
        "output": call.output,
        "target": str(call.target),
        **{name: call.settings[name] for name in ("start", "end", "batch_size")},
    }


def device_name(device: Any) -> str:
    """The kind of device that scores, without its number: cpu, or the GPU's name."""
    found = check_device(device)
    return torch.cuda.get_device_name(found) if found.type == "cuda" else found.type


# Precomputations


def plan(job: Job, call: Call, length: int, n_choices: int) -> Precomputation:
    """The precomputation given, or the one that an earlier run of such a model on this machine made, or a new one.

    Trials by the clock may choose another way each time, and scores would then differ in their last bits. So the
    plan of a model, length and device is kept in the user's cache, for runs to agree that have different stores.
    """
    settings: dict[str, Any] = {"precision": job.precision or "highest", "device": call.settings["device"]}
    if job.precomputation is not None:
        made = Precomputation.load(job.precomputation, call.settings["device"])
        if job.precision not in (None, made.settings.precision):
            raise YuzuError(
                f"precision: got {job.precision}, and {job.precomputation} was made with {made.settings.precision}; "
                "give no precision, or make another precomputation"
            )
        return made
    some = None if call.args is None else tuple(array[:2] for array in call.args)
    place = _place(job, call, length, n_choices)
    if place.is_file():
        try:
            made = Precomputation.load(place, call.settings["device"])
            x = torch.zeros(1, n_choices, length)
            one = None if some is None else tuple(array[:1] for array in some)
            yuzu_ism(call.models[0], x, made, args=one, start=0, end=1, device=call.settings["device"])
            # a GPU may have had more to spare then; on a CPU the default is always the same
            if made.settings.max_memory <= memory_for(call.models[0], check_device(call.settings["device"])):
                return made
        except PrecomputationError:  # of another model that looks alike
            pass
    made = precompute(call.models[0], length, n_choices=n_choices, args=some, **settings)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made.save(place)
    except OSError as error:  # a home that cannot be written to
        warn_user(f"the plan is not kept in {place.parent} ({error})")
    return made


def _place(job: Job, call: Call, length: int, n_choices: int) -> Path:
    """The file of a plan in the user's cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    model = call.models[0]
    weights = [(name, str(t.dtype), tuple(t.shape)) for name, t in model.state_dict().items() if hasattr(t, "shape")]
    args = None if call.args is None else [(str(a.dtype), tuple(a.shape[1:])) for a in call.args]
    known = [
        __version__,
        torch.__version__,
        repr(model),
        weights,
        args,
        length,
        n_choices,
        job.precision or "highest",
        job.threads,
    ]
    digest = hashlib.sha256(repr([*known, device_name(call.settings["device"]), os.uname()]).encode()).hexdigest()
    return root / "yuzu" / f"{digest[:32]}.yuzu"


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
