"""The command line: scores in a file, and jobs that go on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import yuzu
from tests.jobs import MODEL, SEQUENCES, read
from tests.oracle import assert_close
from yuzu import command_line
from yuzu.command_line import commands
from yuzu.command_line.model import load_model
from yuzu.sequence import one_hot_encode

h5py = pytest.importorskip("h5py", reason="the command line writes HDF5")


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
        patch.setattr(commands.Call, "scores", lambda *_: sys.exit("killed"))
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


def test_a_job_goes_on_where_it_stopped(job, monkeypatch):
    _, arguments = job
    scored = []
    original = commands.Call.scores

    def counted(self, X, made):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(len(X))
        return original(self, X, made)

    monkeypatch.setattr(commands.Call, "scores", counted)
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
    original = commands.Call.scores

    def interrupted(model, X, *rest):
        if len(X) < 2:  # the last
            raise KeyboardInterrupt
        return original(model, X, *rest)

    for first, again in ((None, None), ("highest", "same"), ("gaussian 1.5", "gaussian 1.5")):
        given = {name: [] if name is None else ["--precomputation", f"{name}.yuzu"] for name in (None, *made)}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(commands.Call, "scores", interrupted)
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


def test_help_teaches(job):
    for arguments in (["--help"], ["ism", "--help"]):
        shown = subprocess.run([sys.executable, "-m", "yuzu", *arguments], capture_output=True, text=True, check=True)
        assert "examples:" in shown.stdout and "goes on where it stopped" in shown.stdout


def test_a_warning_is_one_line(job, tmp_path, monkeypatch):
    (tmp_path / "naive.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x):\n        return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2\n"
    )
    command = [sys.executable, "-m", "yuzu", "precompute", "--model", "naive.py:Net", "--length", "20", "--out", "n.yuzu", "--device", "cpu"]
    quiet = {**os.environ, "TQDM_DISABLE": "1"}  # a slow machine would say its stages
    shown = subprocess.run(command, env=quiet, capture_output=True, text=True, check=True).stderr
    assert shown.startswith("yuzu precompute: warning: Net runs naively") and shown.count("\n") == 1
    assert "warn_user" not in shown and ".py:" not in shown


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
