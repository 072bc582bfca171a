"""The command line: errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import yuzu
from tests.jobs import read
from yuzu import command_line

h5py = pytest.importorskip("h5py", reason="the command line writes HDF5")

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


def test_another_jobs_file_is_not_touched(job, capsys):
    _, arguments = job
    assert command_line.main(arguments) == 0
    before = read()["scores"]
    assert command_line.main([*arguments, "--target", "1"]) == 2
    assert "another job's scores" in capsys.readouterr().err
    assert np.array_equal(read()["scores"], before)

LATE = {"target": ["--target", "7"], "start": ["--start", "20"], "device": ["--device", "quantum"]}


@pytest.mark.parametrize("change", LATE.values(), ids=LATE)
@pytest.mark.parametrize("planned", [False, True])
def test_errors_come_before_planning_and_the_progress_bar(job, capsys, monkeypatch, change, planned):
    _, arguments = job
    if planned:
        yuzu.precompute(job[0], 20, device="cpu").save("net.yuzu")
        change = [*change, "--precomputation", "net.yuzu"]
    monkeypatch.setattr("yuzu.command_line.commands.precompute", lambda *_, **__: pytest.fail("the model was planned first"))
    assert command_line.main([*arguments[:-1], *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and error.count("\n") == 1
