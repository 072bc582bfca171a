"""The packaged classifier and peaks, and the script that made them."""

import gzip
import json
import random
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from yuzu import YuzuError, examples
from yuzu.examples import MODEL_FILE, PEAKS_FILE, CTCFClassifier, load_ctcf_model, load_ctcf_peaks

SCRIPT = Path(__file__).resolve().parents[1] / "tutorials" / "train_ctcf_model.py"
MOTIF = "CCACCAGGGGGCGC"  # of CTCF


def reverse_complement(sequence):
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


def brute_force_deltas(model, X):
    """The change of the logit for every substitution, one sequence of shape (4, L) -> (4, L)."""
    length = X.shape[1]
    mutants = X.repeat(4 * length, 1, 1)
    for letter in range(4):
        for position in range(length):
            mutants[letter * length + position, :, position] = torch.eye(4)[letter]
    with torch.inference_mode():
        return (model(mutants) - model(X[None]))[:, 0].reshape(4, length)


def test_files_are_small_and_weights_are_float32():
    weights = files("yuzu") / "data" / MODEL_FILE
    assert len(weights.read_bytes()) < 300_000
    assert len((files("yuzu") / "data" / PEAKS_FILE).read_bytes()) < 20_000
    with safe_open(str(weights), framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}
        assert float(file.metadata()["held_out_accuracy"]) >= 0.96


def test_the_model_is_ready_to_use():
    model = load_ctcf_model()
    assert isinstance(model, CTCFClassifier) and not model.training
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert load_ctcf_model() is not model
    for length in (5, 100, 1000):
        assert model(torch.zeros(2, 4, length)).shape == (2, 1)


def test_the_peaks_are_held_out_real_and_one_hot():
    peaks = load_ctcf_peaks()
    assert len(peaks.names) == len(peaks.sequences) == len(peaks.X) == len(set(peaks.names)) == 40
    assert peaks.labels.tolist() == [1] * 30 + [0] * 10
    for name, sequence in zip(peaks.names, peaks.sequences, strict=True):
        chromosome, span = name.split(":")
        start, end = map(int, span.split("-"))
        assert chromosome == "chr1" and end - start == len(sequence) == 100
        assert set(sequence) <= set("ACGT")
    assert peaks.X.shape == (40, 4, 100) and peaks.X.dtype == torch.float32
    assert (peaks.X.sum(dim=1) == 1).all()


def test_the_model_tells_the_held_out_peaks_apart():
    peaks = load_ctcf_peaks()
    with torch.inference_mode():
        model = load_ctcf_model()
        for X in (peaks.X, peaks.X.flip(1, 2)):  # both strands
            right = (model(X)[:, 0] > 0) == (peaks.labels == 1)
            assert right.double().mean() >= 0.95


def test_the_largest_effects_spell_the_ctcf_motif():
    """In most CTCF peaks the 14 letters with the largest summed effect match the motif, on either strand."""
    model, peaks = load_ctcf_model(), load_ctcf_peaks()
    matches = []
    for sequence, X in zip(peaks.sequences[:30], peaks.X[:30], strict=True):
        effect = -brute_force_deltas(model, X).sum(dim=0) / 3
        best = int(effect.unfold(0, len(MOTIF), 1).sum(dim=-1).argmax())
        found = sequence[best : best + len(MOTIF)]
        # The window may sit a position or two off the motif's own frame, as the motif has soft ends.
        frames = [
            (motif[max(0, shift) :], found[max(0, -shift) :])
            for motif in (MOTIF, reverse_complement(MOTIF))
            for shift in range(-3, 4)
        ]
        matches.append(max(sum(a == b for a, b in zip(*frame, strict=False)) for frame in frames))
    # A random window reaches 7 at best in most cases; see the control below.
    assert sum(count >= 9 for count in matches) >= 20, matches


def test_random_windows_do_not_spell_the_motif():
    """The control of the test above: its bar is out of reach by chance."""
    generator = random.Random(0)
    counts = []
    for _ in range(300):
        found = "".join(generator.choices("ACGT", k=14))
        frames = [
            (motif[max(0, shift) :], found[max(0, -shift) :])
            for motif in (MOTIF, reverse_complement(MOTIF))
            for shift in range(-3, 4)
        ]
        counts.append(max(sum(a == b for a, b in zip(*frame, strict=False)) for frame in frames))
    assert sum(count >= 9 for count in counts) < 30


def write_peaks(path, motif, count, seed):
    """Random sequences with a motif planted in each, on three chromosomes, as gzipped FASTA in lower case."""
    generator = random.Random(seed)
    with gzip.open(path, "wt") as file:
        for index in range(count):
            letters = generator.choices("acgt", k=100)
            start = generator.randrange(20, 60)
            letters[start : start + len(motif)] = motif if index % 2 else reverse_complement(motif)
            file.write(f">chr{1 + index % 3}:{index * 100}-{index * 100 + 100}\n{''.join(letters)}\n")


def run_script(folder, *arguments):
    command = [sys.executable, str(SCRIPT), "--ctcf", str(folder / "ctcf.fa.gz")]
    command += ["--pu1", str(folder / "pu1.fa.gz"), "--out", str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_peaks(folder / "ctcf.fa.gz", MOTIF, 400, seed=0)
    write_peaks(folder / "pu1.fa.gz", "AAAAAGAGGAAGTG", 300, seed=1)
    return folder


def test_the_training_script_learns_and_writes_what_loads(planted):
    first = run_script(planted, "--epochs", 8, "--batch-size", 32, "--min-accuracy", 0.9)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "held-out accuracy 0.9" in first.stdout or "held-out accuracy 1.0" in first.stdout
    weights = (planted / MODEL_FILE).read_bytes()
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    shapes = {name: tuple(value.shape) for name, value in load_ctcf_model().state_dict().items()}
    for name, record in header.items():
        if name != "__metadata__":
            assert tuple(record["shape"]) == shapes[name]
    headers = [line for line in (planted / PEAKS_FILE).read_text().splitlines() if line.startswith(">")]
    assert len(headers) == 40
    assert all(line.startswith(">chr1:") and line.split()[1] in ("CTCF", "PU.1") for line in headers)


def test_the_training_script_gives_the_same_weights_twice(planted):
    written = []
    for _ in range(2):
        result = run_script(planted, "--epochs", 1, "--batch-size", 64, "--min-accuracy", 0, "--seed", 3)
        assert result.returncode == 0, result.stderr
        written.append(((planted / MODEL_FILE).read_bytes(), (planted / PEAKS_FILE).read_bytes()))
    assert written[0] == written[1]


def test_the_training_script_fails_below_the_wanted_accuracy(planted, tmp_path):
    for name in ("ctcf.fa.gz", "pu1.fa.gz"):
        (tmp_path / name).write_bytes((planted / name).read_bytes())
    result = run_script(tmp_path, "--epochs", 1, "--batch-size", 512, "--min-accuracy", 1.01)
    assert result.returncode == 1
    assert "is below 1.01: nothing written" in result.stderr
    assert not (tmp_path / MODEL_FILE).exists()


def test_the_training_script_says_which_file_is_missing(tmp_path):
    result = run_script(tmp_path)
    assert result.returncode == 1
    assert f"{tmp_path / 'ctcf.fa.gz'} is not there" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name, load", [(examples.MODEL_FILE, examples.load_ctcf_model), (examples.PEAKS_FILE, examples.load_ctcf_peaks)])
@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "cut"])
def test_a_shipped_file_that_is_gone_or_damaged(tmp_path, monkeypatch, name, load, content):
    """As where files of a clone are pointers only."""
    whole = (files("yuzu") / "data" / name).read_bytes()
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / name).write_bytes(whole[: len(whole) // 3 + 1] if content == "cut" else content)
    monkeypatch.setattr(examples, "files", lambda package: tmp_path)
    if content == "cut" and name == examples.PEAKS_FILE:
        pytest.skip("a text has no end of its own")
    with pytest.raises(YuzuError, match=rf"{name}, which ships with yuzu, cannot be read \(.*\); install yuzu anew") as caught:
        load()
    assert "\n" not in str(caught.value)
