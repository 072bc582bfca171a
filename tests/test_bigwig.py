"""BigWig files of projected scores, read back with pyBigWig."""

import builtins
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yuzu.attribution import hypothetical, mean_effect, projected
from yuzu.bigwig import write_bigwig
from yuzu.errors import YuzuError
from yuzu.regions import Regions, one_hot_regions

pyBigWig = pytest.importorskip("pyBigWig", reason="writes BigWig files")


def read(path):
    """Per chromosome the values, NaN where there is none."""
    with pyBigWig.open(str(path)) as file:
        assert file.isBigWig()
        return {name: np.array(file.values(name, 0, size)) for name, size in file.chroms().items()}


def random_scores(n, length, seed=0):
    """No two values are alike, so that one can be told from another."""
    return (np.random.default_rng(seed).permutation(n * length).reshape(n, length) + 1).astype(np.float32)


def windows(chromosomes, starts, length, **columns):
    return Regions(chromosomes, starts, [start + length for start in starts], **columns)


def nearest_by_force(regions, scores, sizes):
    """The oracle: every base asks every window that covers it for the distance of its summit."""
    found = {name: np.full(size, np.nan) for name, size in sizes.items()}
    for name, values in found.items():
        for base in range(len(values)):
            covering = [
                (abs(base + 0.5 - regions.summits[row]), -regions.summits[row], row)
                for row in range(len(regions))
                if regions.chromosomes[row] == name and regions.starts[row] <= base < regions.ends[row]
            ]
            if covering:
                row = min(covering)[-1]
                values[base] = scores[row][base - regions.starts[row]]
    return found


def split_as_chrombpnet(regions, scores, sizes):
    """A second oracle: regions by summit, each written from the split on its left to the one on its right."""
    found = {name: np.full(size, np.nan) for name, size in sizes.items()}
    order = sorted(range(len(regions)), key=lambda row: (regions.chromosomes[row], regions.summits[row]))
    for name, values in found.items():
        own = [row for row in order if regions.chromosomes[row] == name]
        for place, row in enumerate(own):
            start, end = regions.starts[row], regions.ends[row]
            if place and regions.ends[own[place - 1]] > start:
                start = (regions.summits[own[place - 1]] + regions.summits[row]) // 2
            if place + 1 < len(own) and regions.starts[own[place + 1]] < end:
                end = (regions.summits[row] + regions.summits[own[place + 1]]) // 2
            values[start:end] = scores[row][start - regions.starts[row] : end - regions.starts[row]]
    return found


def assert_same(found, wanted):
    assert list(found) == sorted(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


# ------------------------------------------------------------------ the values


def test_by_hand(tmp_path):
    regions = windows(["chr1", "chr1", "chr2"], [2, 4, 0], 4)  # summits 4 and 6: the split is at 5
    scores = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, -1, 0.5]], dtype=np.float32)
    assert write_bigwig(tmp_path / "some.bw", regions, scores, {"chr2": 4, "chr1": 10}) is None
    nan = np.nan
    assert_same(read(tmp_path / "some.bw"), {"chr1": [nan, nan, 1, 2, 3, 6, 7, 8, nan, nan], "chr2": [9, 0, -1, 0.5]})
    assert [p.name for p in tmp_path.iterdir()] == ["some.bw"]


SIZES = {"chr1": 60, "chr10": 50, "chr2": 40, "unused": 5}


@st.composite
def centred(draw, unique=False):
    """Windows on their summits, which may be equal."""
    length = draw(st.integers(1, 15))
    names = st.sampled_from(["chr2", "chr1", "chr10"])
    places = st.tuples(names, st.integers(0, 25))
    key = (lambda place: place) if unique else None
    rows = draw(st.lists(places, min_size=1, max_size=12, unique_by=key))
    regions = windows([name for name, _ in rows], [start for _, start in rows], length)
    return regions, random_scores(len(rows), length)


@st.composite
def anywhere(draw):
    """Windows with their summits anywhere in them, some read from the minus strand."""
    regions, scores = draw(centred())
    n, length = scores.shape
    offsets = draw(st.lists(st.integers(0, length - 1), min_size=n, max_size=n))
    flipped = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return windows(regions.chromosomes, regions.starts, length, summits=regions.starts + offsets, flipped=flipped), scores


@settings(max_examples=300, deadline=None)
@given(case=centred(unique=True))
def test_split_as_chrombpnet(case, tmp_path_factory):
    regions, scores = case
    path = tmp_path_factory.getbasetemp() / "split.bw"
    write_bigwig(path, regions, scores, SIZES)
    wanted = split_as_chrombpnet(regions, scores, SIZES)
    assert_same(read(path), wanted)
    assert_same(read(path), nearest_by_force(regions, scores, SIZES))


@settings(max_examples=300, deadline=None)
@given(case=anywhere(), piece=st.sampled_from([1, 7, 1 << 16]))
def test_the_nearest_summit_wins(case, piece, tmp_path_factory):
    regions, scores = case
    path = tmp_path_factory.getbasetemp() / "nearest.bw"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["yuzu.bigwig"], "_PIECE", piece)
        write_bigwig(path, regions, scores, SIZES)
    forward = np.where(regions.flipped[:, None], scores[:, ::-1], scores)
    assert_same(read(path), nearest_by_force(regions, forward, SIZES))


def test_the_first_row_wins_of_equal_summits(tmp_path):
    regions = windows(["a"] * 3, [5, 5, 4], 6, summits=[8, 8, 8])
    scores = random_scores(3, 6)
    write_bigwig(tmp_path / "a.bw", regions, scores, {"a": 20})
    assert read(tmp_path / "a.bw")["a"][4:11].tolist() == [scores[2, 0], *scores[0]]
    write_bigwig(tmp_path / "a.bw", regions[[2, 1, 0]], scores, {"a": 20})
    assert read(tmp_path / "a.bw")["a"][4:11].tolist() == [*scores[0], scores[1, 5]]


@pytest.mark.parametrize("step", [37, 100, 150, 5_000])
def test_many_windows(tmp_path, step):
    """Blocks, stretches and zoom levels of a file that is not tiny."""
    n, length = 2_000, 100
    starts = np.random.default_rng(1).permutation(n) * step
    regions = windows(["chr1"] * n, starts.tolist(), length)
    scores = random_scores(n, length) / 8
    size = int(starts.max()) + length
    write_bigwig(tmp_path / "many.bw", regions, scores, {"chr1": size})
    wanted = split_as_chrombpnet(regions, scores, {"chr1": size})
    assert_same(read(tmp_path / "many.bw"), wanted)
    with pyBigWig.open(str(tmp_path / "many.bw")) as file:
        values = wanted["chr1"]
        assert file.header()["nBasesCovered"] == np.isfinite(values).sum()
        # from the zoom levels, whose bins end elsewhere
        assert file.stats("chr1", 0, size, type="max")[0] == pytest.approx(np.nanmax(values), rel=0.01)
        assert file.stats("chr1", 0, size)[0] == pytest.approx(np.nanmean(values), rel=0.01)


def test_from_sequences_to_the_browser(tmp_path):
    """The way of a user: FASTA and narrowPeak, scores of one strand, and back to the genome."""
    genome = {"chr1": "ACGTTGCANNACGTACGGTA" * 3, "chr2": "GATTACA"}
    regions = Regions(["chr1", "chr2", "chr1", "chr1"], [10, 0, 20, 44], [14, 7, 30, 50], strands=["+", "+", "-", "-"])
    with pytest.warns(UserWarning, match="dropped 1 of 4"):
        found = one_hot_regions(regions, genome, width=12, reverse_complement=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
    scores = found.X * weights * torch.arange(1, 13)  # the letter's weight, times its place as the model reads it
    write_bigwig(tmp_path / "a.bw", found.regions, scores, {name: len(text) for name, text in genome.items()})
    values = read(tmp_path / "a.bw")["chr1"]
    complement = dict(zip("ACGTN", "TGCAN", strict=True))
    letter_weights = dict(zip("ACGTN", (1, 2, 3, 4, 0), strict=True))
    for base in range(6, 53):
        if base < (12 + 25) // 2 and base < 18:
            wanted = letter_weights[genome["chr1"][base]] * (base - 6 + 1)
        elif 19 <= base < 31:
            wanted = letter_weights[complement[genome["chr1"][base]]] * (31 - base)
        elif base >= 41:
            wanted = letter_weights[complement[genome["chr1"][base]]] * (53 - base)
        else:
            wanted = np.nan
        np.testing.assert_equal(values[base], wanted)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("make", [
    lambda d, X: projected(hypothetical(d), X),
    lambda d, X: mean_effect(d, X),
    lambda d, X: projected(hypothetical(d), X).double().numpy(),
    lambda d, X: projected(hypothetical(d), X).requires_grad_(),
    lambda d, X: projected(hypothetical(d), X).sum(1),
    lambda d, X: projected(hypothetical(d), X).bfloat16(),
    lambda d, X: projected(hypothetical(d), X).half().numpy(),
    lambda d, X: X,
    lambda d, X: X.bool().numpy(),
])
def test_scores_of_letters_are_summed(tmp_path, make):
    X = torch.nn.functional.one_hot(torch.randint(4, (3, 9), generator=torch.Generator().manual_seed(0)), 4).mT.float()
    X[1, :, 3] = 0  # N
    d = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1)) * (1 - X)
    scores = make(d, X)
    write_bigwig(tmp_path / "a.bw", windows(["a"] * 3, [0, 20, 40], 9), scores, {"a": 60})
    wanted = torch.as_tensor(scores).detach().float()
    wanted = wanted.sum(1) if wanted.ndim == 3 else wanted
    values = read(tmp_path / "a.bw")["a"]
    for row in range(3):
        np.testing.assert_array_equal(values[20 * row : 20 * row + 9].astype(np.float32), wanted[row].numpy())


REGIONS = windows(["a", "b"], [0, 3], 5)
GOOD = np.ones((2, 5), dtype=np.float32)
PEAK = {"a": 10, "b": 8}


@pytest.mark.parametrize("kwargs, text", [
    ({"regions": "peaks.bed"}, "regions: got str, want yuzu.regions.Regions"),
    ({"regions": Regions([], [], [])}, "regions: got no rows"),
    ({"scores": GOOD.tolist()}, "scores: got list, want a torch.Tensor or numpy.ndarray"),
    ({"scores": GOOD[0]}, r"scores: got float32 of shape \(5,\), want numbers of shape \(n, L\) or \(n, C, L\)"),
    ({"scores": np.ones((2, 4, 5, 1))}, r"scores: got float64 of shape \(2, 4, 5, 1\)"),
    ({"scores": GOOD.astype(str)}, "scores: got <U32"),
    ({"scores": GOOD[:1]}, "scores: got 1 rows for 2 regions, want one for each"),
    ({"scores": GOOD[:, 1:]}, "scores: got 4 positions for the region of length 5 in row 0, want one for each"),
    ({"regions": Regions(["a", "b"], [0, 3], [5, 7])}, "scores: got 5 positions for the region of length 4 in row 1"),
    ({"scores": np.where(np.eye(2, 5), np.nan, GOOD)}, "scores: got NaN or infinity"),
    ({"scores": np.where(np.eye(2, 5), np.inf, GOOD)}, "scores: got NaN or infinity"),
    ({"scores": torch.ones(2, 4, 5)}, r"more than one letter of a position, .*pass yuzu.attribution.projected\(scores, X\)"),
    ({"chromosome_sizes": {"a": 10}}, "chromosome_sizes: got none for 'b' of row 1"),
    ({"chromosome_sizes": {"a": 10, "b": 7}}, "regions: got b:3-8 in row 1, want it within the chromosome's length 7"),
    ({"chromosome_sizes": {"a": 10, "b": "8"}}, "chromosome_sizes: got 'b' of length '8', want a chromosome and its length"),
    ({"chromosome_sizes": {"a": 0, "b": 8}}, "chromosome_sizes: got 'a' of length 0"),
    ({"chromosome_sizes": {"a": 2**32, "b": 8}}, "chromosome_sizes: got 'a' of length 4294967296"),
    ({"chromosome_sizes": {"a": True, "b": 8}}, "chromosome_sizes: got 'a' of length True"),
    ({"chromosome_sizes": [("a", 10)]}, "chromosome_sizes: got list, want lengths by chromosome, or a chrom.sizes or .fai"),
])
def test_bad_arguments(tmp_path, kwargs, text):
    old = tmp_path / "a.bw"
    old.write_bytes(b"old")
    with pytest.raises(YuzuError, match=text):
        write_bigwig(old, **{"regions": REGIONS, "scores": GOOD, "chromosome_sizes": PEAK, **kwargs})
    assert old.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bw"]


def test_hypothetical_scores_in_a_later_row_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["yuzu.bigwig"], "_ROWS", 2)
    scores = np.zeros((5, 4, 3))
    scores[4, 1:3, 2] = 1, -1
    with pytest.raises(YuzuError, match="more than one letter"):
        write_bigwig(tmp_path / "a.bw", windows(["a"] * 5, [0] * 5, 3), scores, {"a": 9})


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("content", [
    "b\t8\na\t10\n", "b 8\na   10", "b\t8\r\na\t10\r\n", "\nb\t8\t3\t60\t61\na\t10\t99\t60\t61\n",
])
def test_files_of_sizes(tmp_path, content):
    sizes = tmp_path / "genome.sizes"
    sizes.write_bytes(content.encode())
    for path in (sizes, str(sizes)):
        write_bigwig(str(tmp_path / "a.bw"), REGIONS, GOOD, path)
        with pyBigWig.open(str(tmp_path / "a.bw")) as file:
            assert list(file.chroms().items()) == [("a", 10), ("b", 8)]


@pytest.mark.parametrize("content, text", [
    ("a\n", "genome.sizes, line 1: got 'a' of length '' in column 2"),
    ("a\t10\n\nb\tten\n", "genome.sizes, line 3: got 'b' of length 'ten' in column 2, want a chromosome and its length"),
    ("a\t10\nb\t1,000\n", "genome.sizes, line 2: got 'b' of length '1,000'"),
    ("a\t10\nb\t8.5\n", "genome.sizes, line 2: got 'b' of length '8.5'"),
    ("a\t10\nb\tnan\n", "genome.sizes, line 2: got 'b' of length 'nan'"),
    ("a\t0\t10\n", "genome.sizes, line 1: got 'a' of length 0"),  # BED
    ("a\t10\nb\t8\na\t10\n", "genome.sizes, line 3: got 'a' a second time"),
    ("a\t10\nb\t-8\n", "genome.sizes, line 2: got 'b'"),
    ("", "chromosome_sizes: got none for 'a' of row 0"),
])
def test_bad_files_of_sizes(tmp_path, content, text):
    (tmp_path / "genome.sizes").write_text(content)
    with pytest.raises(YuzuError, match=text):
        write_bigwig(tmp_path / "a.bw", REGIONS, GOOD, tmp_path / "genome.sizes")
    with pytest.raises(FileNotFoundError):
        write_bigwig(tmp_path / "a.bw", REGIONS, GOOD, tmp_path / "absent.sizes")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bw"
    write_bigwig(path, REGIONS, GOOD, PEAK)
    before = path.read_bytes()
    module = sys.modules["yuzu.bigwig"]
    original = module._nearest

    def broken(rows, regions, values):
        yield from original(rows, regions, values)
        raise OSError("disk full")

    monkeypatch.setattr(module, "_nearest", broken)
    with pytest.raises(OSError, match="disk full"):
        write_bigwig(path, REGIONS, 2 * GOOD, PEAK)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.bw"]
    with pytest.raises(FileNotFoundError):
        write_bigwig(tmp_path / "absent" / "a.bw", REGIONS, GOOD, PEAK)


def test_memory_does_not_grow_with_the_chromosome(tmp_path):
    """Windows that tile 1.5 million bases: the scores are one row, seen 3,000 times."""
    n, length = 3_000, 500
    regions = windows(["a"] * n, range(0, n * length, length), length)
    scores = np.broadcast_to(np.linspace(-1, 1, length, dtype=np.float32), (n, length))
    tracemalloc.start()
    write_bigwig(tmp_path / "a.bw", regions, scores, {"a": 250_000_000})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6, "1.5 million bases as float32 would be 6 MB"
    with pyBigWig.open(str(tmp_path / "a.bw")) as file:
        np.testing.assert_array_equal(file.values("a", 1_499_000, 1_500_001), [*scores[0], *scores[0], np.nan])


def test_without_pybigwig_the_error_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without(name, *rest, **named):
        if name == "pyBigWig":
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install pyBigWig$"):
        write_bigwig(tmp_path / "a.bw", REGIONS, GOOD, PEAK)
