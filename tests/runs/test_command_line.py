"""``yuzu ism --out scores.zarr`` and ``yuzu status``."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import yuzu
from tests.jobs import SEQUENCES
from tests.oracle import assert_close
from tests.test_command_line_heads import TWO_HEADS
from yuzu import command_line
from yuzu.command_line.model import load_model
from yuzu.runs.call import Call
from yuzu.runs.store import Store
from yuzu.sequence import one_hot_encode

pytest.importorskip("zarr", reason="stores of runs need zarr")
xarray = pytest.importorskip("xarray")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path="s.zarr"):
    return xarray.open_zarr(path)


def to_store(arguments, *more):
    place = arguments.index("--out") + 1
    return [*arguments[:place], "s.zarr", *arguments[place + 1 :], *more]


@pytest.mark.parametrize(
    "options, axes",
    [
        ([], ()),
        (["--output", "delta", "--target", "1"], ()),
        (["--output", "hypothetical", "--start", "3", "--end", "-2"], ("output",)),
    ],
)
def test_scores_are_labelled(job, options, axes, capsys):
    model, arguments = job
    assert command_line.main([*to_store(arguments), *options]) == 0
    assert "5 sequences in s.zarr" in capsys.readouterr().out
    found = opened()
    assert found.scores.dims == ("sequence", "letter", "position", *axes)
    assert "".join(found.letter.values) == "ACGT" and found.name.values.tolist() == [f"peak{i}" for i in range(5)]
    start, end = (3, -2) if "--start" in options else (0, 20)
    assert np.array_equal(found.position, np.arange(20)[start:end])
    kind = options[1] if options else "l2"
    target = 1 if "--target" in options else None
    settings = {"output": "delta" if kind == "hypothetical" else kind, "target": target, "start": start, "end": end}
    wanted = yuzu.naive_ism(model.double(), one_hot_encode(SEQUENCES).double(), device="cpu", **settings).float()
    if kind == "hypothetical":
        wanted = wanted - wanted.mean(1, keepdim=True)
    assert_close(torch.from_numpy(found.scores.values), wanted)
    assert np.array_equal(found.sequences, one_hot_encode(SEQUENCES).numpy())
    assert found.attrs["alphabet"] == "ACGT" and len(found.attrs["weights_sha256"]) == 64


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
def test_rows_coordinates_and_scores_agree(peaks, tmp_path):
    model, arguments, genome, lines = peaks
    assert command_line.main(to_store(arguments, "--output", "delta")) == 0
    found = opened()
    assert found.name.values.tolist() == ["p", "r é"] and found.row.values.tolist() == [0, 2]
    assert found.line.values.tolist() == [lines[0], lines[2]] and found.summit.values.tolist() == [33, 20]
    assert {"letter", "name", "chrom", "start", "end", "strand", "summit"} <= set(found.coords)
    for row in range(2):
        chrom, start, end, strand = (found[name].values[row] for name in ("chrom", "start", "end", "strand"))
        text = genome[chrom][start:end]
        X = one_hot_encode([text.translate(str.maketrans("ACGT", "TGCA"))[::-1] if strand == "-" else text])
        assert np.array_equal(found.sequences[row], X[0].numpy())
        assert_close(torch.from_numpy(found.scores.values[row : row + 1]), yuzu.naive_ism(model, X, output="delta", device="cpu"))


def test_the_same_command_goes_on(job, monkeypatch, capsys):
    _, arguments = job
    scored = []
    original = Call.scores

    def interrupted(self, X, made):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(X))
        return original(self, X, made)

    monkeypatch.setattr(Call, "scores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command_line.main(to_store(arguments, "--at-once", "2"))
    assert command_line.main(["status", "s.zarr"]) == 0
    said = capsys.readouterr().out
    assert "4 of 5 sequences (80.0%)" in said and "start the same job again" in said
    scored.clear()
    assert command_line.main(to_store(arguments)) == 0
    assert scored == [1], "only what was left"
    assert command_line.main(to_store(arguments)) == 0 and scored == [1], "nothing is left"
    capsys.readouterr()
    assert command_line.main(["status", "s.zarr"]) == 0
    assert capsys.readouterr().out == "5 of 5 sequences (100.0%)\n"


def test_two_processes_give_the_same_bits(job, capfd):
    _, arguments = job
    assert command_line.main(to_store(arguments)) == 0
    one = opened().load()
    Path("s.zarr").rename("one.zarr")
    assert command_line.main(to_store(arguments, "--workers", "2")) == 0
    assert one.scores.identical(opened().scores.load())


def test_failed_sequences_are_listed(job, monkeypatch, capsys):
    _, arguments = job
    original = Call.scores

    def scored(self, X, made):
        found, each = original(self, X, made)
        return np.where(X.numpy()[:, :1, :1] == 1, np.nan, found), each  # sequences that begin with A

    monkeypatch.setattr(Call, "scores", scored)
    for _ in range(2):  # also when there is nothing to do
        assert command_line.main(to_store(arguments, "--at-once", "1")) == 3
        out, err = capsys.readouterr()
        assert "5 sequences in s.zarr, 2 failed" in out
        assert err == "failed: peak0: the scores are not finite\nfailed: peak2: the scores are not finite\n"
    assert opened().failure.values.tolist() == ["the scores are not finite", "", "the scores are not finite", "", ""]
    known = Path("s.zarr/scores/c.1.0.0").stat().st_mtime_ns
    monkeypatch.setattr(Call, "scores", original)
    assert command_line.main(to_store(arguments, "--retry")) == 0
    assert np.isfinite(opened().scores).all() and not any(opened().failure.values)
    assert Path("s.zarr/scores/c.1.0.0").stat().st_mtime_ns == known, "it had not failed"


@pytest.mark.parametrize(
    "environment, shards",
    [
        ({}, ["0/2", "1/2"]),
        ({}, ["1/2", "2/2"]),
        ({"SLURM_ARRAY_TASK_ID": "{}", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_MAX": "5"}, [4, 5]),
        ({"SGE_TASK_ID": "{}", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "2"}, [1, 2]),
    ],
)
def test_shards(job, environment, shards, capsys, monkeypatch):
    _, arguments = job
    for number, shard in enumerate(shards):
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(shard))
        given = "array" if environment else shard
        assert command_line.main(to_store(arguments, "--shard", given, "--at-once", "1")) == 0
        said = capsys.readouterr().out
        assert ("is done" in said) == (number == 0), said
        assert len(Store(Path("s.zarr")).done()) in ((2, 3) if number == 0 else (5,))


CHANGES = {
    "weights": (lambda: torch.save({k: v + 1 for k, v in torch.load("net.pt").items()}, "net.pt"), [], "weights"),
    "target": (lambda: None, ["--target", "1"], "target"),
    "output": (lambda: None, ["--output", "delta"], "output"),
    "sequences": (lambda: Path("x.fa").write_text(Path("x.fa").read_text().replace("TTTTT", "TTTTA")), [], "sequences"),
    "code": (lambda: Path("net.py").write_text(Path("net.py").read_text() + "\n# other\n"), [], "code"),
    "threads": (lambda: None, ["--threads", "2"], "threads"),
}


@pytest.mark.parametrize("change, options, name", CHANGES.values(), ids=CHANGES)
def test_another_jobs_store_is_not_touched(job, change, options, name, capsys, tmp_path):
    _, arguments = job
    assert command_line.main(to_store(arguments)) == 0
    before = {path: path.stat().st_mtime_ns for path in sorted(Path("s.zarr").rglob("*"))}
    capsys.readouterr()
    change()
    assert command_line.main([*to_store(arguments), *options]) == 2
    said = capsys.readouterr().err
    assert "s.zarr is another job's, with other" in said and f"{name} (" in said and said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in sorted(Path("s.zarr").rglob("*"))} == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "s.h5", "--workers", "2"], "--workers needs a store"),
        (["--workers", "0"], "workers must be an integer, at least 1, got 0"),
        (["--shard", "5/4"], "shard must be (i, n)"),
        (["--shard", "x"], "--shard must be I/N, such as 3/16, or array"),
        (["--shard", "array"], "this is no task of an array"),
        (["--devices", "cpu,quantum"], "give either --device or --devices"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--out", "missing/s.zarr"], "there is no folder missing"),
        (["--out", "x.zarr"], "x.zarr is not a store of yuzu ism"),
        (["--target", "7"], "target=7 does not exist"),
        (["--precomputation", "none.yuzu"], "--precomputation: there is no file none.yuzu"),
    ],
)
def test_errors(job, options, message, capsys):
    Path("x.zarr").mkdir()
    before = sorted(Path().iterdir())
    assert command_line.main([*to_store(job[1]), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and message in error and error.count("\n") == 1
    assert sorted(Path().iterdir()) == before


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
def test_other_inputs_are_those_of_the_windows_kept(peaks):
    """The second of three regions has no window."""
    Path("heads.py").write_text(TWO_HEADS)
    arguments = ["ism", "--model", "heads.py:Net", "--weights", "heads.pt", *peaks[1][5:], "--head", "profile", "--args", "rows.npz"]
    torch.manual_seed(0)
    model = load_model("heads.py:Net", None)
    torch.save(model.state_dict(), "heads.pt")
    batch, scale = torch.randn(3, 2), torch.randn(3, 1)
    np.savez("rows.npz", scale=scale, batch=batch)
    assert command_line.main(to_store(arguments, "--output", "delta", "--at-once", "1")) == 0
    found = opened()
    X, kept = torch.from_numpy(found.sequences.values), [0, 2]
    args = (batch[kept].double(), scale[kept].double())
    wanted = yuzu.naive_ism(model.double(), X.double(), args=args, output="delta", func=lambda y: y["profile"], device="cpu")
    assert_close(torch.from_numpy(found.scores.values), wanted.float())


def test_errors_of_other_inputs_and_precomputations(job, capsys):
    Path("heads.py").write_text(TWO_HEADS)
    np.savez("rows.npz", scale=np.zeros((4, 1)), batch=np.zeros((4, 2)))
    yuzu.precompute(job[0], 20, device="cpu").save("net.yuzu")
    for options, message in [
        (["--model", "heads.py:Net", "--weights", "heads.pt", "--args", "rows.npz", "--head", "counts"], "want 5 rows, one for each"),
        (["--precomputation", "net.yuzu", "--precision", "medium"], "net.yuzu was made with highest"),
    ]:
        torch.save(load_model("heads.py:Net", None).state_dict(), "heads.pt")
        assert command_line.main([*to_store(job[1]), *options]) == 2
        assert message in capsys.readouterr().err and not Path("s.zarr").exists()
    assert command_line.main([*to_store(job[1]), "--precomputation", "net.yuzu"]) == 0


def test_a_missing_package_is_told(job, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert command_line.main(to_store(job[1])) == 2
    assert "--out: a store of scores needs zarr, version 3: pip install" in capsys.readouterr().err


def test_status_of_nothing(tmp_path, capsys):
    assert command_line.main(["status", str(tmp_path / "none.zarr")]) == 2
    assert "none.zarr does not exist" in capsys.readouterr().err


def test_the_python_face(job, tmp_path):
    model, arguments = job
    X = one_hot_encode(SEQUENCES)
    run = functools.partial(yuzu.runs.ism_to, "p.zarr", model, X, output="delta", device="cpu", names=list("abcde"))
    assert not run(shard=(1, 2), block=2).complete
    found = run()
    assert found.complete and found.sequences == 5 and not found.failures
    data = opened("p.zarr")
    assert data.name.values.tolist() == list("abcde")
    assert_close(torch.from_numpy(data.scores.values), yuzu.naive_ism(model, X, output="delta", device="cpu"))
    with pytest.raises(yuzu.YuzuError, match="another job's, with other output"):
        yuzu.runs.ism_to("p.zarr", model, X, device="cpu", names=list("abcde"))
    for bad, message in [({"workers": 0}, "workers"), ({"shard": (4, 2)}, "shard"), ({"genome": "x"}, "are for regions"), ({"names": ["a"]}, "names")]:
        with pytest.raises(yuzu.YuzuError, match=message):
            yuzu.runs.ism_to("q.zarr", model, X, device="cpu", **bad)
    with pytest.raises(yuzu.YuzuError, match="sequences must have shape"):
        yuzu.runs.ism_to("q.zarr", model, X[0], device="cpu")
