"""Speed, memory and error of yuzu_ism beside its peers, in one run, against the project's targets.

    python benchmarks/benchmark.py                         # the table of targets
    python benchmarks/benchmark.py --full                  # also lengths, many sequences, single core, fastISM
    python benchmarks/benchmark.py --parts lengths         # a part of the full run, with the quick run's patience
    python benchmarks/benchmark.py --only ToyNet BPNet --repeats 9
    python benchmarks/benchmark.py --quick-check           # short sequences: does everything run?
    python benchmarks/benchmark.py --redraw benchmarks/results/cpu-quick.json

Every peer runs in an environment of its own (see `environments`) and a fresh process, with the same weights and
sequences, one after the other; yuzu runs before and after them. Medians and ranges are over all repeats. How each
peer is timed stands at the top of its runner in ``benchmarks/peers``. Results are written after every model, to
``benchmarks/results``. The exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import picture
from environments import NotAvailable, python_of
from targets import COLUMNS, TARGET_CORES, TARGETS, median, ratio, verdicts

HERE = Path(__file__).resolve().parent
FIGURE = HERE.parent / "figs" / "yuzu_timings.png"
TABLE = {
    "ToyNet": 1000,
    "DeepSEA": 1000,
    "Basset": 1000,
    "FactorizedBasset": 1000,
    "BPNet": 1000,
    "bpnet-lite": 2114,
    "SpliceAI-400": 1400,
}
MORE = {"OneLayer": 1000, "Beluga": 2000}
CUDA_ONLY = {"ChromBPNet": 2114}
LENGTHS = {**TABLE, **MORE, **CUDA_ONLY}
FULLY_CONVOLUTIONAL = {"OneLayer": 0, "ToyNet": 0, "BPNet": 0, "SpliceAI-400": 400}  # positions that give no output
SWEPT_LENGTHS = (250, 1000, 4000, 16000)
MANY = (10, 100)
# numbers of sequences that would take longer are left out, as the output says
MANY_SECONDS = 900
QUICK_MANY_SECONDS = 60
PARTS = ("table", "lengths", "sequences", "cores")
CHECK_LENGTHS = {"SpliceAI-400": 600, "Beluga": 400}  # for --quick-check; 200 for the others
PEERS = ("naive", "tangermeme", "published", "fastism")
NEED_BPNET_LITE = ("bpnet-lite", "ChromBPNet")
TANGERMEME_LENGTH = 4000  # its raw outputs of all mutants of a longer sequence do not fit into memory
QUICK_SECONDS = {"published yuzu": 300}  # beyond them a peer is stopped, and its row says so; 600 for the others
QUICK_ALPHA = 1.05  # the published Yuzu's alpha in the quick run, close to the result of its own, longer search
MEMORY_SHARE = 0.9  # share of the free memory for one peer: beyond it the peer fails, not the machine


@dataclass(frozen=True)
class Peer:
    """A row of the results: who runs, in which environment, with which settings."""

    label: str
    script: str
    environment: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model, length and number of sequences to be measured.

    ``judged`` says which targets apply: those of the ``"table"``, memory and precompute (``"limits"``), or the errors
    alone (``"nothing"``).
    """

    purpose: str
    model: str
    length: int
    sequences: int
    cores: int
    peers: tuple[str, ...]
    judged: str
    precisions: tuple[str, ...]


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def default_cores() -> int:
    """Two, as the targets ask, or fewer where ``OMP_NUM_THREADS`` or the machine says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked) if asked.isdigit() else TARGET_CORES, len(available_cores()))


def bfloat16_instructions() -> bool:
    """True if the CPU multiplies bfloat16 matrices; without that, bfloat16 products are slower, not faster."""
    try:
        flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """The machine that the results were measured on."""
    try:
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    found = {
        "cpu": cpu,
        "bfloat16_instructions": bfloat16_instructions(),
        "cores_available": len(available_cores()),
        "load_before": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
        "gpu": None,
    }
    if options.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def peers_of(case: Case, options: argparse.Namespace) -> Iterator[Peer]:
    """The rows of a case between the two runs of yuzu, in the order in which they run."""
    home = "tangermeme" if case.model in NEED_BPNET_LITE else "main"  # bpnet-lite is installed there
    device = options.device
    if "naive" in case.peers:
        yield Peer("naive", "run_naive.py", home, {})
    if "tangermeme" in case.peers:
        yield Peer("tangermeme fast", "run_tangermeme.py", "tangermeme", {"fast": True})
        if device == "cuda" and case.model in NEED_BPNET_LITE:
            counts = {"fast": True, "counts_only": True}
            yield Peer("tangermeme fast, counts", "run_tangermeme.py", "tangermeme", counts)
        yield Peer("tangermeme", "run_tangermeme.py", "tangermeme", {"fast": False})
    if "published" in case.peers:
        alpha = QUICK_ALPHA if case.purpose == "table" and not options.full else None
        place = "published" if home == "main" else home
        yield Peer("published yuzu", "run_published_yuzu.py", place, {"alpha": alpha})
    if "fastism" in case.peers:
        yield Peer("fastISM", "run_fastism.py", "fastism", {})


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The cases to measure, the table first."""
    cuda = options.device == "cuda"
    names = options.only or [*TABLE, *(MORE if options.full else ()), *(CUDA_ONLY if cuda else ())]
    chosen = PEERS if options.full else PEERS[:-1]  # fastISM takes minutes for one sequence
    peers = tuple(chosen if options.peers is None else options.peers)
    if cuda:
        peers = tuple(p for p in peers if p != "fastism")
    precisions: tuple[str, ...] = ("highest", "high", "medium") if cuda else ("highest",)
    if not cuda and bfloat16_instructions():
        precisions = ("highest", "medium")
    together = 10 if cuda else 1
    if options.quick_check:
        for name in names:
            length = CHECK_LENGTHS.get(name, 200)
            yield Case("check", name, length, together, options.cores, peers, "nothing", precisions)
        return
    for name in names if "table" in options.parts else ():
        yield Case("table", name, LENGTHS[name], together, options.cores, peers, "table", precisions)
    for name in (n for n in names if n in FULLY_CONVOLUTIONAL and "lengths" in options.parts):
        for outputs in SWEPT_LENGTHS:
            length = outputs + FULLY_CONVOLUTIONAL[name]
            some = tuple(p for p in peers if p == "naive" or (p == "tangermeme" and length <= TANGERMEME_LENGTH))
            yield Case("lengths", name, length, 1, options.cores, some, "limits", ("highest",))
    for name in (n for n in names if n not in MORE and "sequences" in options.parts):
        for number in MANY if "table" in options.parts and together == 1 else (1, *MANY):
            # fastISM mutates many sequences at one position together: alone a sequence is its worst case
            some = tuple(p for p in peers if p == "fastism" and number == min(MANY))
            yield Case("sequences", name, LENGTHS[name], number, options.cores, some, "limits", ("highest",))
    others = sorted({1, len(available_cores())} - {options.cores})
    for number in others if not cuda and "cores" in options.parts else ():
        for name in (n for n in names if n not in MORE):
            some = tuple(p for p in peers if p in ("naive", "tangermeme"))
            yield Case("cores", name, LENGTHS[name], 1, number, some, "nothing", precisions)


def sequences(number: int, length: int) -> np.ndarray:
    """Random one-hot sequences, the same every time."""
    letters = np.random.default_rng(0).integers(4, size=(number, length))
    return np.eye(4, dtype=np.int8)[letters].transpose(0, 2, 1).copy()


class Preloaded:
    """Starts runners without the seconds that imports take; see ``peers/preloaded.py``."""

    def __init__(self, cores: int) -> None:
        command = [sys.executable, str(HERE / "peers" / "preloaded.py")]
        # more threads than cores wait for one another
        given = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "env": {**os.environ, "OMP_NUM_THREADS": str(cores)},
        }
        self.process = subprocess.Popen(command, text=True, **given)

    def run(self, command: list[str], files: tuple[Path, Path], seconds: float, cores: int) -> int:
        """The exit status of a runner, which writes its output and errors to ``files``."""
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        paths = [str(HERE / "peers"), str(HERE.parent)]
        given = {"output": str(files[0]), "errors": str(files[1]), "cores": available_cores()[:cores], "paths": paths}
        process.stdin.write(json.dumps({"script": command[0], "job": command[1], **given}) + "\n")
        process.stdin.flush()
        runner = int(process.stdout.readline())
        late: list[int] = []
        timer = threading.Timer(seconds, lambda: (late.append(runner), os.kill(runner, signal.SIGKILL)))
        timer.start()
        status = int(process.stdout.readline())
        timer.cancel()
        if late:
            raise subprocess.TimeoutExpired(command, seconds)
        return status


class Runner:
    """Runs the peers of one case, each in a fresh process."""

    def __init__(
        self, case: Case, options: argparse.Namespace, folder: Path, preloaded: Preloaded | None = None
    ) -> None:
        self.case, self.options, self.folder, self.preloaded = case, options, folder, preloaded
        short, long = (1, 1) if options.quick_check else (20, 120) if options.full else (4, 15)
        self.job: dict[str, Any] = {
            "model": case.model,
            "length": case.length,
            "device": options.device,
            "cores": case.cores,
            "repeats": options.repeats,
            "limit_seconds": short,
            "whole_seconds": long,
            "sequences_file": str(folder / "sequences.npy"),
            "weights_file": str(folder / "weights.npz"),
            "truth_file": str(folder / "truth.npz"),
            "counts_only": False,
            "batch_size": None,
        }
        np.save(folder / "sequences.npy", sequences(case.sequences, case.length))
        self.rows: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, dict[str, Any]]:
        """All rows, by label."""
        case = self.case
        home = "tangermeme" if case.model in NEED_BPNET_LITE else "main"
        ours = []
        for precision in case.precisions:
            settings = {
                "precision": precision,
                "precomputation_file": str(self.folder / f"{precision}.safetensors"),
            }
            ours.append(Peer(f"yuzu {precision}", "run_yuzu.py", home, settings))
        for peer in ours:
            self.rows[peer.label] = self.call(peer)
        for peer in peers_of(case, self.options):
            batch = self.rows.get("naive", {}).get("batch_size") if peer.label == "tangermeme" else None
            self.rows[peer.label] = self.call(peer, batch_size=batch)
        # the quick run repeats float32 alone, whose ratios the targets are about
        again_after = ours if self.options.full else ours[:1]
        for peer in again_after if case.peers else ():
            row = self.rows[peer.label]
            if "failure" in row:
                continue
            again = self.call(peer, scores_file=None)
            if "failure" in again:
                row["note"] = f"again after the peers: {again['failure']}"
            else:
                row["seconds_before"], row["seconds_after"] = row["seconds"], again["seconds"]
                row["seconds"] = row["seconds"] + again["seconds"]
        for label, row in self.rows.items():
            self.complete(label, row)
        return self.rows

    def call(self, peer: Peer, **changes: Any) -> dict[str, Any]:
        """Run a runner, and return the results that it printed, or the reason why it printed none."""
        scores = str(self.folder / f"{peer.label}.npz")
        job = {**self.job, "scores_file": scores, **peer.settings, **changes}
        (self.folder / "job.json").write_text(json.dumps(job))
        try:
            python = sys.executable if self.options.here else python_of(peer.environment)
        except NotAvailable as reason:
            return {"failure": f"not available: {reason}"}
        command = [python, str(HERE / "peers" / peer.script), str(self.folder / "job.json")]
        threads = str(self.case.cores)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # no peer is to pay for blocks that glibc hands back to the system and gets anew: in a sandbox it is slow
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        }
        environment.pop("PYTHONPATH", None)
        if peer.script in ("run_yuzu.py", "run_naive.py"):
            environment["PYTHONPATH"] = str(HERE.parent)
        seconds = 7200 if self.options.full else QUICK_SECONDS.get(peer.label, 600)
        files = self.folder / "output.txt", self.folder / "errors.txt"
        try:
            if self.preloaded is not None:
                status = self.preloaded.run(command[1:], files, seconds, self.case.cores)
            else:
                with open(files[0], "w") as output, open(files[1], "w") as errors:
                    confine = confined(self.case.cores, self.options.device)
                    given = {"stdout": output, "stderr": errors, "env": environment, "preexec_fn": confine}
                    status = subprocess.run(command, timeout=seconds, **given).returncode
        except subprocess.TimeoutExpired:
            return {"failure": f"it took more than {seconds} s"}
        output, told = files[0].read_text(), files[1].read_text().strip().splitlines()
        try:
            result = json.loads(output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return {"failure": f"it ended with {how}: {told[-1] if told else 'no output'}"}
        if "error" in result:
            return {"failure": result["error"], "where": told[-6:]}
        return result

    def complete(self, label: str, row: dict[str, Any]) -> None:
        """Add medians, ranges and errors to a row."""
        if "failure" in row:
            return
        each = [seconds / self.case.sequences for seconds in row["seconds"]]
        row["seconds_per_sequence"] = statistics.median(each)
        row["range"] = [min(each), max(each)]
        scores, truth = self.folder / f"{label}.npz", self.folder / "truth.npz"
        if scores.exists() and truth.exists():
            row.update(relative_errors(scores, truth))


def confined(cores: int, device: str) -> Callable[[], None]:
    """Prepare a peer's process: keep to the first ``cores`` cores, and to a share of the free memory."""
    chosen = available_cores()[:cores]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        pages = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass

    def confine() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, chosen)
        if device == "cpu":  # a GPU's driver reserves addresses far beyond what it uses
            most = int(pages * MEMORY_SHARE)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    return confine


def relative_errors(scores: Path, truth: Path) -> dict[str, float]:
    """Relative L2 errors against float64 naive ISM: of the norms over all outputs, and of the signed changes where
    the peer gives them.
    """
    with np.load(scores) as file, np.load(truth) as true:
        found = {"error_l2": float(np.linalg.norm(file["l2"] - true["l2"]) / np.linalg.norm(true["l2"]))}
        names = [name for name in true if name.startswith("delta")]
        if all(name in file for name in names):
            wrong = sum(float(((file[name] - true[name]) ** 2).sum()) for name in names)
            found["error_delta"] = (wrong / sum(float((true[name] ** 2).sum()) for name in names)) ** 0.5
    return found


def cell(row: dict[str, Any] | None) -> str:
    """Seconds of a row with their range."""
    if row is None:
        return "-"
    if "failure" in row:
        return "failed"
    low, high = row["range"]
    batch = f", batch {row['batch_size']}" if row.get("batch_size") else ""
    return f"{row['seconds_per_sequence']:.4g} ({low:.4g}-{high:.4g}{batch})"


def print_case(case: dict[str, Any]) -> None:
    """A case's rows, its targets, and all that failed."""
    print(
        f"\n## {case['model']}: {case['length']:,} positions, {case['sequences']} "
        f"sequence{'s' * (case['sequences'] > 1)}, {case['cores']} core{'s' * (case['cores'] > 1)}, {case['device']}"
    )
    print("| | seconds a sequence | times yuzu | precompute s | peak MB (may use) | error, signed | norms | floor |")
    print("|---|---|---|---|---|---|---|---|")
    ours = median(case, "yuzu highest")
    for label, row in case["rows"].items():
        if "failure" in row:
            print(f"| {label} | failed | | | | | | |")
            continue
        floor = row.get("floor", {}).get("seconds")
        shown = [
            label,
            cell(row),
            "" if ours is None else f"{row['seconds_per_sequence'] / ours:.3g}",
            number(row.get("precompute_seconds"), "{:.2f}"),
            number(row.get("peak_bytes"), "{:.0f}", 1e-6) + number(row.get("allowed_bytes"), " ({:.0f})", 1e-6),
            number(row.get("error_delta"), "{:.1e}"),
            number(row.get("error_l2"), "{:.1e}"),
            "" if floor is None else f"{floor:.3g} s, {floor / row['seconds_per_sequence']:.0%}",
        ]
        print("| " + " | ".join(shown) + " |")
    for label, row in case["rows"].items():
        for key in ("failure", "note"):
            if row.get(key):
                print(f"- {label}: {row[key]}")
        if row.get("floor", {}).get("reason"):
            print(f"- {label}, no floor: {row['floor']['reason']}")
        positions = row.get("timed_positions", case["length"])
        if positions < case["length"]:
            print(f"- {label}: timed on {positions:,} positions in the middle and scaled to {case['length']:,}")
    for verdict in case["verdicts"]:
        print(f"- {verdict}")
    sys.stdout.flush()


def number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)


def print_targets(results: dict[str, Any]) -> None:
    """The table of targets: measured / wanted, for every model and peer."""
    table = [case for case in results["cases"] if case["purpose"] == "table"]
    if not table:
        return
    print("\n## Times faster than each peer / wanted (! where it is not reached)\n")
    print("| model | " + " | ".join(f"over {column}" for column in COLUMNS) + " | others | row |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for case in table:
        wanted = TARGETS.get(case["model"], {})
        cells = []
        for column in COLUMNS:
            measured, least = ratio(case, column), wanted.get(column)
            text = "-" if measured is None else f"{measured:.1f}"
            if least is not None and all(label in case["rows"] for label in COLUMNS[column]):
                text += f" / {least:g}" + ("" if measured is not None and measured >= least else " !")
            cells.append(text)
        missed = [v for v in case["verdicts"] if not v.startswith("pass")]
        others = [v for v in missed if "times faster than" not in v or "precompute" in v]
        cells += ["; ".join(others) or "pass", "pass" if not missed else "FAIL"]
        print("| " + " | ".join([case["model"], *cells]) + " |")
    if {case["cores"] for case in table} != {TARGET_CORES} and table[0]["device"] == "cpu":
        print(f"\nThe targets are for {TARGET_CORES} cores.")


def print_fits(results: dict[str, Any]) -> None:
    """Seconds against length, as a straight line, for each model whose length was swept."""
    swept = [case for case in results["cases"] if case["purpose"] == "lengths"]
    for name in dict.fromkeys(case["model"] for case in swept):
        pairs = [(c["length"], median(c, "yuzu highest")) for c in swept if c["model"] == name]
        points = [(length, seconds) for length, seconds in pairs if seconds is not None]
        if len(points) < 3:
            continue
        x, y = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        slope, intercept = np.polyfit(x, y, 1)
        rest = 1 - ((y - slope * x - intercept) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        print(f"{name}: {slope * 1e6:.1f} microseconds a position + {intercept * 1e3:.1f} ms, R^2 = {rest:.5f}", end="")
        print("; " + ", ".join(f"{length:,}: {seconds:.3g} s" for length, seconds in points))


def report(results: dict[str, Any], figure: Path | None) -> int:
    """Print the tables, draw the picture, and say with the exit status whether all targets are reached."""
    print_targets(results)
    print_fits(results)
    try:
        if figure is not None and picture.draw(results, figure):
            print(f"\ndrawn: {figure}")
    except ImportError as error:
        print(f"\nnot drawn: {error}")
    missed = [(c, v) for c in results["cases"] for v in c["verdicts"] if not v.startswith("pass")]
    for case, verdict in missed:
        print(f"{case['model']} ({case['purpose']}, {case['length']:,} positions): {verdict}")
    print(f"\n{len(missed)} targets missed" if missed else "\nall targets reached")
    return 1 if missed else 0


def measure(
    case: Case, options: argparse.Namespace, alone: float | None, preloaded: Preloaded | None
) -> dict[str, Any]:
    """One case with its verdicts."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="yuzu-benchmark-") as folder:
        rows = Runner(case, options, Path(folder), preloaded).run()
    found = {name: getattr(case, name) for name in ("purpose", "model", "length", "sequences", "cores", "judged")}
    found |= {"device": options.device, "load_before": load, "rows": rows}
    if case.purpose == "sequences":
        found["seconds_alone"] = alone
    found["verdicts"] = [str(verdict) for verdict in verdicts(found)]
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="lengths, many sequences, single core, fastISM too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: table, or all with --full")
    parser.add_argument("--quick-check", action="store_true", help="short sequences, one repeat: does all of it run?")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=list(LENGTHS), help=", ".join(LENGTHS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: all, fastism in the full run only")
    parser.add_argument("--repeats", type=int, help="at most so many, before and after the peers; 5, or 9 with --full")
    parser.add_argument("--cores", type=int, default=default_cores(), help="default: 2, as in the targets")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--here", action="store_true", help="run all peers with this interpreter, which has them")
    parser.add_argument("--out", type=Path, help="the JSON file, by default in benchmarks/results")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="print and draw the results of an earlier run")
    options = parser.parse_args(arguments)
    if options.repeats is None:
        options.repeats = 1 if options.quick_check else 9 if options.full else 5
    kind = "check" if options.quick_check else "full" if options.full else "quick"
    partial = "-partial" if options.only or options.peers is not None or options.parts else ""
    options.parts = options.parts or (PARTS if options.full else PARTS[:1])
    options.out = options.out or HERE / "results" / f"{options.device}-{kind}{partial}.json"
    return options


def main() -> int:
    options = parse()
    if options.redraw:
        results = json.loads(options.redraw.read_text())
        for case in results["cases"]:
            print_case(case)
        return report(results, FIGURE)
    results = {"machine": machine(options), "cases": []}
    print(f"{results['machine']['gpu'] or results['machine']['cpu']}, load {results['machine']['load_before']:.2f}")
    options.out.parent.mkdir(exist_ok=True)
    alone: dict[str, float] = {}
    begin = time.perf_counter()
    preloaded = Preloaded(options.cores) if options.here and options.device != "cpu" else None
    for case in cases(options):
        expected = alone.get(case.model, 0.0) * case.sequences
        if case.purpose == "sequences" and expected > (MANY_SECONDS if options.full else QUICK_MANY_SECONDS):
            print(f"\n{case.model}, {case.sequences} sequences: not run, it would take {2 * expected:.0f} s")
            continue
        measured = measure(case, options, alone.get(case.model), preloaded)
        seconds = median(measured, "yuzu highest")
        if case.purpose in ("table", "sequences") and case.sequences == 1 and seconds is not None:
            alone[case.model] = seconds
        results["cases"].append(measured)
        results["seconds"] = time.perf_counter() - begin
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print_case(measured)
    print(f"\nwritten to {options.out} after {time.perf_counter() - begin:.0f} s")
    whole = not (options.quick_check or options.only or options.peers is not None or options.parts[0] != PARTS[0])
    return report(results, FIGURE if whole and options.device == "cpu" else None)


if __name__ == "__main__":
    raise SystemExit(main())
