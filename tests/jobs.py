"""A job of the command line: its model, files and arguments."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from yuzu.command_line.model import load_model

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
    import h5py  # here, for fixtures of this file are loaded where it is missing, too

    with h5py.File(path) as file:
        return {k: v[:] for k, v in file.items()}


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
