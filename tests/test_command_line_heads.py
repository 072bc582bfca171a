"""The command line: models with several inputs and outputs, and several models of one architecture."""

import numpy as np
import pytest
import torch

import yuzu
from tests.jobs import SEQUENCES, read
from tests.oracle import assert_close
from yuzu import command_line
from yuzu.command_line.model import load_model
from yuzu.sequence import one_hot_encode

h5py = pytest.importorskip("h5py", reason="the command line writes HDF5")

TWO_HEADS = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(4, 6, 5)
        self.profile = torch.nn.Linear(6 * 16, 3)
        self.counts = torch.nn.Linear(6 * 16 + 2, 1)

    def features(self, x):
        return torch.relu(self.conv(x)).flatten(1)

    def forward(self, x, batch=None, scale=None):
        h = self.features(x)
        if batch is None:
            batch, scale = torch.zeros(len(x), 2), torch.ones(len(x), 1)
        return {"profile": self.profile(h) * scale, "counts": self.counts(torch.cat([h, batch], 1))}

class Pair(Net):
    def forward(self, x):
        found = super().forward(x)
        return found["profile"], found["counts"]

def last_two(output):
    return output["profile"][:, 1:]
"""


@pytest.fixture
def heads(job, tmp_path):
    (tmp_path / "heads.py").write_text(TWO_HEADS)
    models = []
    for fold in range(2):
        torch.manual_seed(fold)
        models.append(load_model("heads.py:Net", None))
        torch.save(models[-1].state_dict(), f"fold{fold}.pt")
    arguments = ["ism", "--model", "heads.py:Net", "--fasta", "x.fa", "--out", "s.h5", "--device", "cpu", "--quiet"]
    return models, [*arguments, "--weights", "fold0.pt"]


def double(model, X, **settings):
    return yuzu.naive_ism(model.double(), X.double(), device="cpu", **settings).float()


@pytest.mark.parametrize(
    "options, pick",
    [
        (["--head", "counts"], lambda y: y["counts"]),
        (["--head", "profile"], lambda y: y["profile"]),
        (["--head", "profile", "--target", "2"], lambda y: y["profile"][:, 2]),
        (["--func", "heads.py:last_two"], lambda y: y["profile"][:, 1:]),
        (["--model", "heads.py:Pair", "--head", "1", "--batch-size", "2"], lambda y: y["counts"]),
        (["--model", "heads.py:Pair", "--head", "-2", "--precision", "high"], lambda y: y["profile"]),
    ],
)
def test_a_head(heads, options, pick):
    models, arguments = heads
    assert command_line.main([*arguments, "--output", "delta", *options]) == 0
    found = torch.from_numpy(read()["scores"])
    assert_close(found, double(models[0], one_hot_encode(SEQUENCES), output="delta", func=pick))


def test_other_inputs_are_rows_beside_the_sequences(heads):
    models, arguments = heads
    rng = np.random.default_rng(0)
    batch, scale = rng.normal(size=(5, 2)).astype(np.float32), rng.normal(size=(5, 1)).astype(np.float32)
    np.savez("rows.npz", scale=scale, batch=batch)  # forward has them in the other order
    given = [*arguments, "--args", "rows.npz", "--head", "profile", "--output", "delta", "--at-once", "2"]
    assert command_line.main(given) == 0
    args = (torch.from_numpy(batch).double(), torch.from_numpy(scale).double())
    wanted = double(models[0], one_hot_encode(SEQUENCES), args=args, output="delta", func=lambda y: y["profile"])
    assert_close(torch.from_numpy(read()["scores"]), wanted)
    np.savez("rows.npz", scale=2 * scale, batch=batch)
    assert command_line.main(given) == 2, "another job"


def test_folds_are_averaged_and_each_is_kept(heads):
    models, arguments = heads
    assert command_line.main([*arguments[:-1], "fold0.pt", "fold1.pt", "--head", "counts", "--output", "hypothetical"]) == 0
    found, X = read(), one_hot_encode(SEQUENCES)
    each = [double(model, X, output="delta", func=lambda y: y["counts"]) for model in models]
    each = torch.stack([one - one.mean(1, keepdim=True) for one in each], 1)
    assert_close(torch.from_numpy(found["scores_by_model"]), each)
    assert_close(torch.from_numpy(found["scores"]), each.mean(1))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--head", "missing", "--output", "delta"], "--head missing: the model's output has no such element"),
        (["--head", "counts", "--func", "heads.py:last_two"], "give either --head or --func"),
        (["--func", "counts"], "--func must be FILE.py:NAME"),
        (["--func", "heads.py:missing"], "heads.py has no missing"),
        (["--output", "delta"], "pick one with head or func"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--args", "none.npz"], "--args: there is no file none.npz"),
        (["--args", "short.npz"], "`batch` of short.npz is float64 of shape (4, 2), want numbers with 5 rows"),
        (["--args", "x.fa"], "--args: x.fa is not an .npz file"),
        (["--model", "net.py:build", "--weights", "net.pt", "--head", "0"], "the model returns one tensor"),
    ],
)
def test_errors(heads, capsys, options, message):
    np.savez("short.npz", batch=np.zeros((4, 2)), scale=np.zeros((5, 1)))
    assert command_line.main([*heads[1], *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("yuzu ism: ") and message in error and error.count("\n") == 1
