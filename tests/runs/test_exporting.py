"""``yuzu export``: the files of other programs, equal to those that the functions in memory write."""

import numpy as np
import pytest
import torch

from yuzu import YuzuError, command_line
from yuzu.attribution import hypothetical, projected
from yuzu.bigwig import write_bigwig
from yuzu.modisco import to_modisco
from yuzu.regions import one_hot_regions, read_regions
from yuzu.runs import export
from yuzu.runs.call import Call
from yuzu.sequence import one_hot_encode

pytest.importorskip("zarr", reason="stores of runs need zarr")
pyBigWig = pytest.importorskip("pyBigWig")
pytestmark = pytest.mark.filterwarnings("ignore:one_hot_regions dropped")


@pytest.fixture
def run(peaks, tmp_path, monkeypatch):
    """A run on peaks: two of three have windows. Options are added; ``bad`` rows fail."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = peaks[1].index("--out") + 1

    def made(*options, bad=()):
        original = Call.scores

        def scored(self, X, made):
            found, each = original(self, X, made)
            rows = [any(np.array_equal(x, y) for y in bad) for x in X.numpy()]
            found[rows] = np.nan
            return found, each

        with monkeypatch.context() as patch:
            patch.setattr(Call, "scores", scored)
            arguments = [*peaks[1][:place], "s.zarr", *peaks[1][place + 1 :], "--at-once", "1", *options]
            assert command_line.main(arguments) == (3 if bad else 0)
        from yuzu.runs.store import Store

        group = Store(tmp_path / "s.zarr").group
        return group["scores"][:], group["sequences"][:]

    return made


@pytest.mark.parametrize(
    "options, cut",
    [(["--output", "delta"], slice(0, 20)), (["--output", "hypothetical", "--start", "3", "--end", "15"], slice(3, 15))],
)
@pytest.mark.parametrize("alphabet", ["dna", "agct"])
def test_files_equal_those_of_the_functions(run, peaks, options, cut, alphabet):
    scores, X = run(*options, "--target", "1", "--alphabet", alphabet)
    letters = {"dna": "ACGT", "agct": "AGCT"}[alphabet]
    files = ["--modisco", "m", "--bigwig", "s.bw", "--bed", "kept.bed", "--numpy", "s.npy"]
    assert command_line.main(["export", "s.zarr", *files]) == 0
    assert np.array_equal(np.load("s.npy", mmap_mode="r"), scores)
    if "delta" in options:
        scores = hypothetical(scores)
    X = X[:, :, cut]
    to_modisco("n", X, scores, alphabet=letters)
    for end in (".ohe.npz", ".attr.npz"):
        (ours, wanted) = (np.load(prefix + end) for prefix in "mn")
        assert ours.files == wanted.files == ["arr_0"] and ours["arr_0"].dtype == wanted["arr_0"].dtype
        assert np.array_equal(ours["arr_0"], wanted["arr_0"])
    kept = open("kept.bed").read().splitlines()
    assert kept == [peaks[3][0], peaks[3][2]]
    values = projected(scores, X).sum(1)
    with pyBigWig.open("s.bw") as file:
        assert file.chroms() == {name: len(text) for name, text in peaks[2].items()}
        places = [("chr1", 23, 43, True), ("chr2", 10, 30, False)]
        for (chrom, start, end, flipped), own in zip(places, values, strict=True):
            begin = end - cut.stop if flipped else start + cut.start
            found = np.array(file.values(chrom, begin, begin + len(own)))
            assert np.array_equal(found[::-1] if flipped else found, own.astype(np.float32))
            assert np.isnan(file.values(chrom, begin - 1, begin)).all()
    if cut == slice(0, 20):
        windows = one_hot_regions(read_regions("peaks.narrowPeak"), "genome.fa", 20, letters, reverse_complement=True).regions
        write_bigwig("t.bw", windows, values, "genome.fa.fai")
        assert open("t.bw", "rb").read() == open("s.bw", "rb").read()


def test_failed_sequences_are_in_no_file(run, peaks):
    text = peaks[2]["chr1"][23:43].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    run("--output", "delta", "--target", "0", bad=[one_hot_encode([text], dtype=torch.int8)[0].numpy()])
    assert export("s.zarr", modisco="m", bed="kept.bed", numpy="s.npy", bigwig="s.bw") == 1
    assert len(np.load("m.ohe.npz")["arr_0"]) == len(np.load("s.npy")) == 1
    assert open("kept.bed").read().splitlines() == [peaks[3][2]]


@pytest.mark.parametrize(
    "made, asked, message",
    [
        (["--output", "l2"], ["--modisco", "m"], "need signed scores, of a run with --output hypothetical or delta"),
        (["--output", "delta"], ["--modisco", "m"], "the store has outputs of shape (2,): give the target"),
        (["--output", "delta"], ["--bigwig", "s.bw", "--target", "2"], "target: got 2, and the store has outputs"),
        (["--output", "delta"], [], "give --modisco, --bigwig, --bed or --numpy"),
        (["--output", "delta"], ["--bed", "missing/kept.bed"], "there is no folder missing"),
        (["--output", "delta", "--shard", "0/2"], ["--numpy", "s.npy"], "is not complete: 1 of 2 sequences are left"),
    ],
)
def test_errors(run, made, asked, message, capsys):
    run(*made)
    capsys.readouterr()
    assert command_line.main(["export", "s.zarr", *asked]) == 2
    said = capsys.readouterr().err
    assert said.startswith("yuzu export: ") and message in said and said.count("\n") == 1


def test_one_output_of_several(run):
    scores, X = run("--output", "hypothetical")
    export("s.zarr", modisco="m", target=1)
    assert np.array_equal(np.load("m.attr.npz")["arr_0"], scores[..., 1])


def test_bed_of_sequences_without_coordinates(small_run, tmp_path):
    from yuzu.runs.worker import work

    task = small_run(n=6)
    work(task)
    with pytest.raises(YuzuError, match="are for runs on regions"):
        export(task.path, bed=tmp_path / "kept.bed")
    assert export(task.path, numpy=tmp_path / "s.npy") == 6
