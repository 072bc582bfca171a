"""The command line: scores in a file, jobs that go on, and errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_close
from safetensors.torch import save_file

import yuzu
from yuzu import command_line
from yuzu.command_line import commands
from yuzu.command_line.inputs import read_sequences
from yuzu.command_line.model import load_model
from yuzu.command_line.options import ALPHABETS
from yuzu.command_line.scores_file import DESCRIPTIONS, DESCRIPTIONS_OF_REGIONS
from yuzu.regions import read_regions
from yuzu.sequence import one_hot_encode

h5py = pytest.importorskip("h5py", reason="the command line writes HDF5")

MODEL = """
import torch
from beside import width

def build():
    layers = [torch.nn.Conv1d(4, width, 5), torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(width * 16, 2)]
    return torch.nn.Sequential(*layers)

def number():
    return 3

def sized(width):
    return build()
"""
SEQUENCES = ["ACGTACGTACGTACGTACGT", "TTTTTCCCCCNNNNNGGGGG", "ACACACACACACACACACAC", "GGGGGGGGGGGGGGGGGGGG", "CATCATCATCATCATCATCA"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with a model, its weights, sequences; and the arguments for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "beside.py").write_text("width = 6\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("net", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    torch.manual_seed(0)
    model = load_model("net.py:build", None)
    torch.save(model.state_dict(), "net.pt")
    save_file(model.state_dict(), "net.safetensors")
    (tmp_path / "x.fa").write_text("".join(f">peak{i}\n{s}\n" for i, s in enumerate(SEQUENCES)))
    arguments = ["ism", "--model", "net.py:build", "--weights", "net.pt", "--fasta", "x.fa", "--out", "s.h5"]
    yield model, [*arguments, "--device", "cpu", "--quiet"]
    for name in ("net", "beside"):
        sys.modules.pop(name, None)


def read(path="s.h5"):
    with h5py.File(path) as file:
        return {k: v[:] for k, v in file.items()}


@pytest.mark.parametrize("output", ["l2", "delta", "prediction", "hypothetical"])
@pytest.mark.parametrize("target", [None, 1])
def test_scores(job, output, target, capsys):
    model, arguments = job
    chosen = [] if target is None else ["--target", str(target)]
    assert command_line.main([*arguments, "--output", output, *chosen, "--at-once", "2"]) == 0
    assert "5 sequences in s.h5" in capsys.readouterr().out
    found, X = read(), one_hot_encode(SEQUENCES)
    kind = "delta" if output == "hypothetical" else output
    wanted = yuzu.naive_ism(model, X, output=kind, target=target, device="cpu")
    if output == "hypothetical":
        wanted = wanted - wanted.mean(1, keepdim=True)
    assert_close(torch.from_numpy(found["scores"]), wanted)
    assert np.array_equal(found["sequences"], X.numpy()) and found["done"].all()
    assert [n.decode() for n in found["names"]] == [f"peak{i}" for i in range(5)]


def test_a_job_killed_in_its_first_batch_leaves_nothing(job, monkeypatch, tmp_path):
    _, arguments = job
    with monkeypatch.context() as patch:
        patch.setattr(commands, "_scores", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            command_line.main(arguments)
    assert not (tmp_path / "s.h5").exists()
    assert command_line.main(arguments) == 0 and read()["done"].all()


def test_a_job_killed_while_its_file_is_made_goes_on(job, monkeypatch, tmp_path):
    """Writing the sequences of many regions takes seconds."""
    _, arguments = job
    original = h5py.Group.create_dataset

    def killed(self, name, *rest, **settings):
        if name == "names":
            sys.exit("killed")
        return original(self, name, *rest, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Group, "create_dataset", killed)
        with pytest.raises(SystemExit):
            command_line.main(arguments)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("s.h5")]
    assert command_line.main(arguments) == 0 and read()["done"].all()


def test_part_of_the_positions(job, capsys):
    model, arguments = job
    assert command_line.main([*arguments, "--start", "4", "--end", "-6", "--output", "delta"]) == 0
    found = torch.from_numpy(read()["scores"])
    assert_close(found, yuzu.naive_ism(model, one_hot_encode(SEQUENCES), output="delta", start=4, end=-6, device="cpu"))
    assert command_line.main([*arguments, "--start", "5", "--end", "-6", "--output", "delta"]) == 2
    assert "another job's scores" in capsys.readouterr().err


def test_regions(job, tmp_path, capsys):
    """Windows on summits; one that runs over the end of its chromosome is left out."""
    model, arguments = job
    genome = {"chr1": "".join(SEQUENCES), "chr2": SEQUENCES[2] * 2}
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    lines = ["chr1\t20\t50\tp\t0\t.\t1\t1\t1\t13", "chr2\t0\t30\tq\t0\t.\t1\t1\t1\t3", "chr2\t5\t35\tr\t0\t.\t1\t1\t1\t15"]
    (tmp_path / "peaks.narrowPeak").write_text("".join(line + "\n" for line in lines))
    place = arguments.index("--fasta")
    given = [*arguments[:place], *arguments[place + 2 :], "--regions", "peaks.narrowPeak", "--genome", "genome.fa", "--width", "20"]
    with pytest.warns(yuzu.YuzuWarning, match="1 of 3"):
        assert command_line.main([*given, "--output", "delta", "--alphabet", "agct"]) == 0
    found = read()
    assert [n.decode() for n in found["names"]] == ["chr1:23-43", "chr2:10-30"]
    X = one_hot_encode([genome["chr1"][23:43], genome["chr2"][10:30]], alphabet="AGCT")
    assert np.array_equal(found["sequences"], X.numpy())
    assert_close(torch.from_numpy(found["scores"]), yuzu.naive_ism(model, X, output="delta", device="cpu"))
    assert (tmp_path / "s.h5.bed").read_text().splitlines() == [lines[0], lines[2]]
    for change, message in [
        (["--fasta", "x.fa"], "either --fasta, or --regions"),
        (["--genome", "none.fa"], "no file none.fa"),
        (["--regions", "none.bed"], "no file none.bed"),
        (["--alphabet", "protein"], "--regions are DNA"),
        (["--width", "0"], "width"),
    ]:
        assert command_line.main([*given, *change]) == 2
        assert message in capsys.readouterr().err
    capsys.readouterr()
    for change in (["--width", "20"], ["--genome", "genome.fa"], ["--max-unknown", "0.5"], ["--max-unknown", "1"], ["--reverse-complement"]):
        assert command_line.main([*arguments, *change]) == 2
        assert change[0] in (said := capsys.readouterr().err) and "are for --regions" in said
    assert command_line.main([*arguments[:place], *arguments[place + 2 :], "--regions", "peaks.narrowPeak"]) == 2
    assert "--regions needs --genome" in capsys.readouterr().err


@pytest.fixture
def peaks(job, tmp_path):
    """Arguments for windows of 20 on peaks of another length, one of them on the minus strand; and their genome."""
    genome = {"chr1": "".join(SEQUENCES), "chr2": SEQUENCES[2] * 2}
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    lines = ["chr1\t20\t50\tp\t0\t-\t1\t1\t1\t13.0", "chr2\t0\t30\tq\t0\t.\t1\t1\t1\t3.0", "chr2\t5\t35\tr é\t0\t+\t1\t1\t1\t15.0"]
    (tmp_path / "peaks.narrowPeak").write_text("".join(line + "\n" for line in lines))
    place = job[1].index("--fasta")
    arguments = [*job[1][:place], *job[1][place + 2 :], "--regions", "peaks.narrowPeak", "--genome", "genome.fa", "--width", "20"]
    return job[0], [*arguments, "--reverse-complement"], genome, lines


COLUMNS = {
    "names": ["chr1:23-43", "chr2:10-30"], "chrom": ["chr1", "chr2"], "start": [23, 10], "end": [43, 30], "strand": ["-", "+"],
    "summit": [33, 20], "peak_name": ["p", "r é"], "peak_start": [20, 5], "peak_end": [50, 35], "peak_strand": ["-", "+"],
}


def columns_of(path="s.h5"):
    with h5py.File(path) as file:
        return {name: (file[name].asstr()[:] if file[name].dtype == object else file[name][:]).tolist() for name in COLUMNS if name in file}


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
def test_what_was_scored_and_its_peak_stand_in_every_row(peaks, tmp_path):
    """The window and the peak differ: neither is to be taken for the other."""
    model, arguments, genome, lines = peaks
    assert command_line.main([*arguments, "--output", "delta"]) == 0
    assert columns_of() == COLUMNS
    found = read()
    for row, (chrom, start, end, strand) in enumerate(zip(*(COLUMNS[c] for c in ("chrom", "start", "end", "strand")), strict=True)):
        text = genome[chrom][start:end]
        X = one_hot_encode([text.translate(str.maketrans("ACGT", "TGCA"))[::-1] if strand == "-" else text])
        assert np.array_equal(found["sequences"][row], X[0].numpy())
        assert_close(torch.from_numpy(found["scores"][row : row + 1]), yuzu.naive_ism(model, X, output="delta", device="cpu"))
    assert (tmp_path / "s.h5.bed").read_text().splitlines() == [lines[0], lines[2]]
    windows = [line.split("\t") for line in (tmp_path / "s.h5.windows.bed").read_text().splitlines()]
    order = ("chrom", "start", "end", "peak_name", None, "strand", "peak_start", "peak_end", "summit")
    assert windows == [[str(COLUMNS[name][row]) if name else "0" for name in order] for row in range(2)]
    kept, scored = read_regions(tmp_path / "s.h5.bed"), read_regions(tmp_path / "s.h5.windows.bed")
    assert kept.starts.tolist() == COLUMNS["peak_start"] and kept.summits.tolist() == scored.summits.tolist() == COLUMNS["summit"]
    assert scored.starts.tolist() == COLUMNS["start"] and scored.names.tolist() == kept.names.tolist() == COLUMNS["peak_name"]
    with h5py.File("s.h5") as file:
        for name in file:
            assert file[name].attrs["description"] in DESCRIPTIONS_OF_REGIONS[name].format(alphabet="ACGT")


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
@pytest.mark.parametrize("missing", [set(COLUMNS) - {"names"}, {"peak_name"}])
def test_a_file_of_an_older_version_gets_the_columns_it_lacks(peaks, missing, monkeypatch):
    _, arguments, _, _ = peaks
    assert command_line.main(arguments) == 0
    before = read()
    with h5py.File("s.h5", "a") as file:
        for name in missing:
            del file[name]
        file["done"][1] = False
    monkeypatch.setattr(commands, "lay_out", None)
    assert command_line.main(arguments) == 0
    after = read()
    assert columns_of() == COLUMNS and after["done"].all() and np.array_equal(after["scores"][0], before["scores"][0])
    assert_close(torch.from_numpy(after["scores"]), torch.from_numpy(before["scores"]))


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
@pytest.mark.parametrize("old, new, column", [("\tp\t", "\tother\t", "peak_name"), ("\t20\t50\t", "\t19\t51\t", "peak_start"), ("\t+\t", "\t.\t", "peak_strand")])
def test_the_same_windows_for_other_peaks(peaks, capsys, old, new, column, tmp_path):
    _, arguments, _, lines = peaks
    assert command_line.main(arguments) == 0
    text = "".join(line + "\n" for line in lines).replace(old, new, 1).replace("\t13.0", "\t14.0" if column == "peak_start" else "\t13.0")
    (tmp_path / "peaks.narrowPeak").write_text(text)
    capsys.readouterr()
    assert command_line.main(arguments) == 2
    assert f"holds the same windows for other peaks (`{column}` differs)" in capsys.readouterr().err


def test_a_file_of_sequences_has_no_columns_of_peaks(job):
    assert command_line.main(job[1]) == 0
    with h5py.File("s.h5") as file:
        assert set(file) == set(DESCRIPTIONS)
        assert {name: file[name].attrs["description"].format(alphabet="ACGT") for name in file} == {
            name: text.format(alphabet="ACGT") for name, text in DESCRIPTIONS.items()
        }


MODULES = {
    "a syntax error": ("def build(:\n", "cannot import {where}: SyntaxError: invalid syntax (", "line 1)"),
    "an indentation": ("def build():\nreturn 3\n", "cannot import {where}: IndentationError: expected an indented block", "line 2)"),
    "bytes that are no text": (b"x = '\xff'\n", "cannot import {where}: SyntaxError", ""),
    "zeros": (b"x = 3\x00\n", "cannot import {where}: ", "null bytes"),
    "an import": ("\nimport no_such_package\n", "cannot import {where}: ModuleNotFoundError: No module named 'no_such_package'", "user.py, line 2)"),
    "a name to import": ("from torch import no_such_name\n", "cannot import {where}: ImportError: cannot import name", "user.py, line 1)"),
    "an error": ("def f():\n    return 1 / 0\nf()\n", "cannot import {where}: ZeroDivisionError: division by zero", "user.py, line 2)"),
    "an error of several lines": ("raise KeyError('a\\nb')\n", "cannot import {where}: KeyError", "user.py, line 1)"),
    "an error without words": ("raise NotImplementedError\n", "cannot import {where}: NotImplementedError (", "user.py, line 1)"),
    "an end": ("import sys\nsys.exit(3)\n", "cannot import {where}: SystemExit: 3", "user.py, line 2)"),
    "arguments of its own": ("import argparse\nargparse.ArgumentParser().parse_args(['--x'])\n", "cannot import {where}: SystemExit: 2", "user.py, line 2)"),
    "nothing": ("", "{where} has no build", ""),
    "no function": ("build = 3\n", "must be a function or class that makes a model, got int", ""),
    "arguments": ("def build(width, depth): ...\n", "is called without arguments, but needs some", ""),
    "no model": ("def build(): ...\n", "must make a torch.nn.Module, it returned NoneType", ""),
    "a class": ("import torch\ndef build(): return torch.nn.Linear\n", "must make a torch.nn.Module, it returned type", ""),
    "an error when called": ("\ndef build():\n    raise OSError('no\\nweights')\n", "{where}:build made no model: OSError: no weights", "user.py, line 3)"),
    "an error in torch": ("import torch\ndef build():\n    return torch.nn.Linear(-1, 'x')\n", "{where}:build made no model: ", "user.py, line 3)"),
    "an end when called": ("def build(): exit('bye')\n", "{where}:build made no model: SystemExit: bye", ""),
    "a class that fails": ("import torch\nclass build(torch.nn.Module):\n    def __init__(self):\n        self.x = torch.nn.Linear(1, 1)\n", "made no model: AttributeError: cannot assign module before Module.__init__() call", "user.py, line 4)"),
}


@pytest.mark.parametrize("form", MODULES)
def test_errors_of_a_users_module(job, tmp_path, capsys, form):
    """One line, with the line of the module; no traceback, and no half a module that stays."""
    content, *texts = MODULES[form]
    (tmp_path / "user.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    for where in ("user.py", "user"):
        sys.modules.pop("user", None)
        capsys.readouterr()
        assert command_line.main([*job[1], "--model", f"{where}:build"]) == 2
        *beside, said = capsys.readouterr().err.splitlines()
        assert said.startswith("yuzu ism: --model") and (not beside or form == "arguments of its own")
        for text in texts:
            assert text.format(where=where) in said
        assert form.endswith("called") or "cannot import" not in said or "user" not in sys.modules
    sys.modules.pop("user", None)


@pytest.mark.parametrize("option", ["--fasta", "--weights", "--precomputation", "--out"])
def test_files_that_may_not_be_read(job, monkeypatch, capsys, option, tmp_path):
    """As root, who may read everything, the tests cannot have one: what opening it raises is raised here."""
    yuzu.precompute(job[0], 20, device="cpu").save("net.yuzu")
    assert command_line.main([*job[1], "--out", "t.h5"]) == 0
    secret = {"--fasta": "x.fa", "--weights": "net.pt", "--precomputation": "net.yuzu", "--out": "t.h5"}[option]
    real, real_h5 = open, h5py.File

    def refuse(path, *rest, **named):
        if str(path) == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **named)

    def refuse_h5(path, *rest, **named):
        if str(path) == secret:
            raise PermissionError(13, f"Unable to open file {path}")
        return real_h5(path, *rest, **named)

    def refuse_safe(path, *rest, **named):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("h5py.File", refuse_h5)
    if option == "--precomputation":
        monkeypatch.setattr("yuzu._engine.store.files.safe_open", refuse_safe)
    capsys.readouterr()
    assert command_line.main([*job[1], option, secret]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and secret in error and "ermission" in error and error.count("\n") == 1


def test_a_file_that_another_job_has_open(job, capsys):
    _, arguments = job
    assert command_line.main(arguments) == 0
    held = "import h5py, sys, time\nfile = h5py.File('s.h5', 'a')\nprint('open', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        capsys.readouterr()
        assert command_line.main(arguments) == 2
        error = capsys.readouterr().err
        other.communicate("")
    assert error == "yuzu ism: --out: s.h5 is open in another program, or another job writes it; wait for that\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BlockingIOError(11, "unable to lock file"), RuntimeError("Can't decrement id ref count\n(file write failed)"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_written(job, monkeypatch, capsys, error):
    """And the job goes on from what is done."""
    _, arguments = job
    original, writes = h5py.Dataset.__setitem__, []

    def fails(self, place, value):
        writes.append(place)
        if len(writes) == 3:
            raise error
        return original(self, place, value)

    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", fails)
        assert command_line.main([*arguments, "--at-once", "2"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("yuzu ism: --out: s.h5 cannot be written: ") and said.count("\n") == 1 and "start the same job again" in said
    assert read()["done"].tolist() == [True, True, False, False, False]
    assert command_line.main(arguments) == 0 and read()["done"].all()


def test_a_damaged_file_of_scores(job, capsys):
    _, arguments = job
    assert command_line.main(arguments) == 0
    for name, value in (("done", np.zeros(3, dtype=bool)), ("done", np.zeros(5)), ("done", None), ("scores", np.zeros(4)), ("scores", None)):
        Path("t.h5").write_bytes(Path("s.h5").read_bytes())
        with h5py.File("t.h5", "a") as file:
            del file[name]
            if value is None:
                file.create_group(name)
            else:
                file[name] = value
        capsys.readouterr()
        assert command_line.main([*arguments, "--out", "t.h5"]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("yuzu ism: --out: t.h5 is") and "damaged" in error and error.count("\n") == 1


@pytest.mark.parametrize("name, content, text", [
    ("genome.fa", ">chr1\nACGT\nAC\nACGT\n>chr2\nACGT\n", "genome: got genome.fa, want FASTA; line 3, record 'chr1': got 2 letters"),
    ("genome.fa", "", "genome: got genome.fa, want FASTA; the file is empty"),
    ("peaks.narrowPeak", "chr1\t20\t50\tp\t0\t.\t1\t1\t1\t4.5\n", "peaks.narrowPeak, line 1: got '4.5', want the summit's offset"),
    ("peaks.narrowPeak", "chrom\tstart\tend\n", "peaks.narrowPeak, line 1: got 'start'"),
])
def test_errors_of_regions(peaks, capsys, name, content, text, tmp_path):
    (tmp_path / name).write_text(content)
    assert command_line.main(peaks[1]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and text in error and error.count("\n") == 1


def test_a_job_goes_on_where_it_stopped(job, monkeypatch):
    _, arguments = job
    scored = []
    original = commands._scores

    def counted(model, X, made, options):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(X))
        return original(model, X, made, options)

    monkeypatch.setattr(commands, "_scores", counted)
    with pytest.raises(KeyboardInterrupt):
        command_line.main([*arguments, "--at-once", "2"])
    assert read()["done"].tolist() == [True] * 4 + [False]
    scored.clear()
    assert command_line.main(arguments) == 0
    assert scored == [1], "only what was left"
    again = read()
    assert command_line.main(arguments) == 0 and scored == [1], "nothing is left"
    monkeypatch.undo()
    assert again["done"].all() and (again["scores"].reshape(5, -1).max(1) > 0).all()


def test_a_job_does_not_go_on_with_another_precomputation(job, monkeypatch, capsys):
    """Bfloat16 products, or probes that approximate, would give some rows other numbers."""
    model, arguments = job
    made = {"highest": {}, "same": {}, "medium": {"precision": "medium"}, "windows": {"conv": "windows"}}
    for alpha in (1.25, 1.5):
        made[f"gaussian {alpha}"] = {"conv": "gaussian", "alpha": alpha}
    for name, settings in made.items():
        yuzu.precompute(model, 20, device="cpu", **settings).save(f"{name}.yuzu")
    original = commands._scores

    def interrupted(model, X, *rest):
        if len(X) < 2:  # the last
            raise KeyboardInterrupt
        return original(model, X, *rest)

    for first, again in ((None, None), ("highest", "same"), ("gaussian 1.5", "gaussian 1.5")):
        given = {name: [] if name is None else ["--precomputation", f"{name}.yuzu"] for name in (None, *made)}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(commands, "_scores", interrupted)
            command_line.main([*arguments, *given[first], "--at-once", "2"])
        before = read()
        assert before["done"].tolist() == [True] * 4 + [False]
        for other in given.keys() - {first, again}:
            assert command_line.main([*arguments, *given[other]]) == 2, other
            assert "another job's scores" in capsys.readouterr().err
        assert np.array_equal(read()["scores"], before["scores"])
        assert command_line.main([*arguments, *given[again]]) == 0 and read()["done"].all()
        Path("s.h5").unlink()


def test_a_module_in_the_current_folder(job, tmp_path, monkeypatch):
    """The command `yuzu` has its own folder on the path, and not the current one, as `python -m yuzu` has."""
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "net.py").write_text(MODEL)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    found = load_model("package_of_mine.net:build", None)
    assert found(one_hot_encode(SEQUENCES)).shape == (5, 2)
    for name in ("package_of_mine", "package_of_mine.net"):
        sys.modules.pop(name)


def test_precomputation(job, capsys):
    model, arguments = job
    plan = ["precompute", "--model", "net.py:build", "--fasta", "x.fa", "--out", "net.yuzu", "--device", "cpu"]
    assert command_line.main(plan) == 0
    assert "conv1d" in capsys.readouterr().out
    assert command_line.main([*arguments, "--precomputation", "net.yuzu", "--weights", "net.safetensors"]) == 0
    assert_close(torch.from_numpy(read()["scores"]), yuzu.naive_ism(model, one_hot_encode(SEQUENCES), device="cpu"))
    assert command_line.main([*plan[:3], "--length", "30", "--out", "other.yuzu", "--device", "cpu"]) == 2, "the model wants 20"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "net.py"], "must be FILE.py:NAME"),
        (["--model", "nowhere.py:build"], "no file nowhere.py"),
        (["--model", "net.py:missing"], "has no missing"),
        (["--model", "no_such_package:Net"], "cannot import no_such_package"),
        (["--model", "net.py:number"], "must make a torch.nn.Module, it returned int"),
        (["--model", "net.py:sized"], "called without arguments, but needs some (missing a required argument: 'width')"),
        (["--model", "net.py:width"], "must be a function or class that makes a model, got int"),
        (["--weights", "none.pt"], "no file none.pt"),
        (["--weights", "whole.pt"], "holds more than tensors, such as a whole model, and is not unpickled; save model.state_dict()"),
        (["--weights", "others.pt"], "does not fit the model: Error(s) in loading"),
        (["--weights", "cut.pt"], "cut.pt cannot be read: torch.save did not write it, or not whole"),
        (["--weights", "x.fa"], "x.fa cannot be read: torch.save did not write it, or not whole"),
        (["--weights", "net.py"], "net.py cannot be read: torch.save did not write it, or not whole"),
        (["--weights", "text.safetensors"], "text.safetensors cannot be read: it is not safetensors, or not whole"),
        (["--weights", "cut.safetensors"], "cut.safetensors cannot be read: it is not safetensors, or not whole"),
        (["--weights", "list.pt"], "list.pt does not fit the model: Expected state_dict"),
        (["--fasta", "none.fa"], "no file none.fa"),
        (["--fasta", "uneven.fa"], "a has 4 letters, b has 3"),
        (["--out", "missing/s.h5"], "no folder missing"),
        (["--out", "foreign.h5"], "not a file of yuzu ism"),
        (["--out", "x.fa"], "is not HDF5, or damaged"),
        (["--out", "cut.h5"], "is not HDF5, or damaged"),
        (["--start", "20"], "select no position"),
        (["--reverse-complement"], "are for --regions"),
        (["--out", "."], "is a folder"),
        (["--precomputation", "none.yuzu"], "make it with yuzu precompute"),
        (["--precomputation", "x.fa"], "x.fa"),
        (["--target", "7"], "target=7 does not exist"),
        (["--at-once", "0"], "at least 1"),
        (["--device", "quantum"], "device must be"),
    ],
)
def test_errors(job, change, message, tmp_path, capsys):
    _, arguments = job
    (tmp_path / "uneven.fa").write_text(">a\nACGT\n>b\nACG\n")
    with h5py.File("foreign.h5", "w") as file:
        file["x"] = [1]
    (tmp_path / "cut.h5").write_bytes((tmp_path / "foreign.h5").read_bytes()[:96])
    torch.save(torch.nn.Conv1d(4, 2, 3), "whole.pt")
    torch.save({"a": torch.zeros(1)}, "others.pt")
    torch.save([torch.zeros(1)], "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "net.pt").read_bytes()[:200])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-9])
    (tmp_path / "text.safetensors").write_text("no header")
    assert command_line.main([*arguments, *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and message in error and error.count("\n") == 1


def test_errors_of_precompute(job, capsys):
    arguments = ["precompute", "--model", "net.py:build", "--length", "20", "--device", "cpu"]
    for change, message in [
        (["--out", "missing/net.yuzu"], "no folder missing"),
        (["--out", "net.yuzu", "--fasta", "x.fa"], "either --fasta or --length"),
        (["--out", "."], "is a folder"),
    ]:
        assert command_line.main([*arguments, *change]) == 2
        error = capsys.readouterr().err
        assert error.startswith("yuzu precompute: ") and message in error


def test_an_error_stands_on_a_line_of_its_own(job, capsys):
    """Not behind the progress bar, which is not hidden by default."""
    _, arguments = job
    assert command_line.main([*arguments[:-1], "--target", "7"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("yuzu ism: target=7")


def test_a_model_with_extra_state(job, tmp_path):
    """Which is in a state_dict, but no tensor."""
    text = MODEL.replace("def build", "class Versioned(torch.nn.Identity):\n    def get_extra_state(self):\n        return {'version': 1}\n\ndef build")
    (tmp_path / "versioned.py").write_text(text.replace("return torch.nn.Sequential(", "return torch.nn.Sequential(Versioned(), "))
    place = job[1].index("--weights")
    arguments = [*job[1][:place], *job[1][place + 2 :], "--model", "versioned.py:build"]
    for _ in range(2):
        torch.manual_seed(0)
        assert command_line.main(arguments) == 0 and read()["done"].all()
    sys.modules.pop("versioned")


def test_another_jobs_file_is_not_touched(job, capsys):
    _, arguments = job
    assert command_line.main(arguments) == 0
    before = read()["scores"]
    assert command_line.main([*arguments, "--target", "1"]) == 2
    assert "another job's scores" in capsys.readouterr().err
    assert np.array_equal(read()["scores"], before)


def test_help_teaches(job):
    for arguments in (["--help"], ["ism", "--help"]):
        shown = subprocess.run([sys.executable, "-m", "yuzu", *arguments], capture_output=True, text=True, check=True)
        assert "examples:" in shown.stdout and "goes on where it stopped" in shown.stdout


LATE = {"target": ["--target", "7"], "start": ["--start", "20"], "device": ["--device", "quantum"]}


@pytest.mark.parametrize("change", LATE.values(), ids=LATE)
@pytest.mark.parametrize("planned", [False, True])
def test_errors_come_before_planning_and_the_progress_bar(job, capsys, monkeypatch, change, planned):
    _, arguments = job
    if planned:
        yuzu.precompute(job[0], 20, device="cpu").save("net.yuzu")
        change = [*change, "--precomputation", "net.yuzu"]
    monkeypatch.setattr(yuzu, "precompute", lambda *_, **__: pytest.fail("the model was planned first"))
    assert command_line.main([*arguments[:-1], *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and error.count("\n") == 1


def test_a_warning_is_one_line(job, tmp_path, monkeypatch):
    (tmp_path / "naive.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2\n"
    )
    command = [sys.executable, "-m", "yuzu", "precompute", "--model", "naive.py:Net", "--length", "20", "--out", "n.yuzu", "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert shown.startswith("yuzu precompute: warning: Net runs naively") and shown.count("\n") == 1
    assert "warn_user" not in shown and ".py:" not in shown


@pytest.mark.parametrize("alphabet", ["dna", "agct", "rna", "protein"])
def test_letters_for_several_bases_are_unknown(tmp_path, alphabet):
    """As in regions of a genome, which has them."""
    text = {"rna": "ACGUNRYSWKMBDHVacgun", "protein": "ACDEFGXBZJUO*acdefgx"}.get(alphabet, "ACGTNRYSWKMBDHVacgtn")
    (tmp_path / "x.fa").write_text(f">a\n{text}\n")
    _, X = read_sequences(tmp_path / "x.fa", alphabet)
    known = ALPHABETS[alphabet]
    assert [bool(column.any()) for column in X[0].T] == [letter.upper() in known for letter in text]


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_precision(job, precision, capsys):
    model, arguments = job
    assert command_line.main([*arguments, "--precision", precision]) == 0
    plan = yuzu.precompute(model, 20, precision=precision, device="cpu")
    wanted = yuzu.yuzu_ism(model, one_hot_encode(SEQUENCES), plan, device="cpu")
    assert_close(torch.from_numpy(read()["scores"]), wanted, 1e-6 if precision == "highest" else 2e-2)
    yuzu.precompute(model, 20, precision="high", device="cpu").save("net.yuzu")
    assert command_line.main([*arguments, "--precision", precision, "--precomputation", "net.yuzu"]) == 2
    error = capsys.readouterr().err
    assert f"--precision {precision}: net.yuzu was made with high" in error and error.count("\n") == 1
    other = {"highest": "medium", "medium": "highest"}[precision]
    assert command_line.main([*arguments, "--precision", other]) == 2, "another job's scores"
