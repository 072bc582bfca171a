"""Regions and their one-hot sequences."""

import gzip
import random
import warnings

import numpy as np
import pytest
import torch

from tests.genomes import NARROW, columns, write, write_fasta
from yuzu.errors import YuzuError, YuzuWarning
from yuzu.regions import Dropped, OneHotRegions, Regions, one_hot_regions, read_regions, write_bed
from yuzu.sequence import decode


def random_genome(lengths, seed=0):
    rng = random.Random(seed)
    return {name: "".join(rng.choices("ACGTacgt", k=length)) for name, length in lengths.items()}


def test_regions_made_by_hand(tmp_path):
    plain = Regions(["a", "b"], np.array([0, 5]), torch.tensor([3, 9]))
    assert plain.summits.tolist() == [1, 7] and plain.lines.tolist() == ["a\t0\t3", "b\t5\t9"]
    stranded = Regions(["a"], [0], [3], strands=["-"])
    assert stranded.lines.tolist() == ["a\t0\t3\t.\t0\t-"]
    whole = Regions(["a", "b"], [0, 5], [3, 9], [2, 5], ["x", "y"], ["-", "+"])
    write_bed(tmp_path / "made.narrowPeak", whole)
    assert columns(read_regions(tmp_path / "made.narrowPeak")) == columns(whole)
    assert repr(whole) == "Regions(2 of 'a', 'b')" and repr(whole[[]]) == "Regions(0 of none)"
    assert repr(Regions(list("abcde"), [0] * 5, [1] * 5)) == "Regions(5 of 'a', 'b', 'c' and 2 more)"


def test_rows_of_regions():
    whole = Regions(list("abcd"), [0, 1, 2, 3], [9, 9, 9, 9], [1, 2, 3, 4], list("wxyz"), list("+-.+"), flipped=[False, True, False, False])
    for rows in ([1, 3], (1, 3), slice(1, None, 2), np.array([False, True, False, True]), torch.tensor([1, 3]), [False, True, False, True]):
        some = whole[rows]
        assert columns(some) == [["b", "d"], [1, 3], [9, 9], [2, 4], ["x", "z"], ["-", "+"]]
        assert some.lines.tolist() == [whole.lines[1], whole.lines[3]] and some.flipped.tolist() == [True, False]
    assert whole[[3, 0]].names.tolist() == ["z", "w"]
    for rows in (1, [0.5], [[1]], "a"):
        with pytest.raises(YuzuError, match="rows: got .*, want a slice, a mask or row numbers"):
            whole[rows]


@pytest.mark.parametrize("kwargs, text", [
    ({"chromosomes": "chr1"}, "chromosomes: got str, want a sequence of str"),
    ({"chromosomes": 3}, "chromosomes: got int, want a sequence of str"),
    ({"chromosomes": ["a", 1]}, "chromosomes: got 1 in row 1, want a str"),
    ({"starts": [1]}, r"starts: got int64 of shape \(1,\), want integers of shape \(2,\)"),
    ({"starts": [0.0, 1.0]}, "starts: got float64"),
    ({"starts": [0, -1]}, "starts: got -1 in row 1, want 0 or more"),
    ({"ends": [5, 1]}, "ends: got 1 in row 1, want more than the start"),
    ({"summits": [3, 5]}, "summits: got 5 in row 1, want start <= summit < end: .* not an offset"),
    ({"summits": [3, 0]}, "summits: got 0 in row 1"),
    ({"names": ["x"]}, "names: got 1 rows, want 2"),
    ({"strands": ["+", "1"]}, r"strands: got 1 in row 1, want '\+', '-' or '.'"),
    ({"lines": ["x"]}, "lines: got 1 rows, want 2"),
    ({"flipped": [1, 0]}, "flipped: got int64"),
])
def test_bad_regions(kwargs, text):
    with pytest.raises(YuzuError, match=text):
        Regions(**{"chromosomes": ["a", "b"], "starts": [0, 1], "ends": [5, 5], **kwargs})


@pytest.mark.parametrize("name", ["kept.bed", "kept.bed.gz"])
def test_write_bed_row_for_row(tmp_path, name):
    regions = read_regions(write(tmp_path, NARROW.replace("\n", "\r\n")))
    write_bed(tmp_path / name, regions[[2, 0]])
    content = (tmp_path / name).read_bytes()
    content = gzip.decompress(content) if name.endswith(".gz") else content
    lines = NARROW.splitlines()
    assert content.decode() == f"{lines[2]}\n{lines[0]}\n"
    with pytest.raises(YuzuError, match="regions: got list, want yuzu.regions.Regions"):
        write_bed(tmp_path / name, lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["some.bed", name])


@pytest.mark.parametrize("width", [1, 2, 5, 8, 31])
@pytest.mark.parametrize("alphabet", ["ACGT", "AGCT", ["t", "C", "a", "G"]])
@pytest.mark.parametrize("kind", ["mapping", "path", "opened"])
def test_against_slices(tmp_path, width, alphabet, kind):
    genome = random_genome({"chr1": 200, "chr2": 100})
    given = genome
    if kind != "mapping":
        pyfaidx = pytest.importorskip("pyfaidx", reason="opens FASTA files")
        path = write_fasta(tmp_path, genome, end="\r\n" if width == 5 else "\n")
        given = path if kind == "path" else pyfaidx.Fasta(str(path))
    summits = {"chr1": range(16, 180, 7), "chr2": range(84, 16, -9)}  # not sorted
    rows = [(name, summit) for name, of_name in summits.items() for summit in of_name]
    random.Random(1).shuffle(rows)
    names, positions = zip(*rows, strict=True)
    regions = Regions(names, [p - 3 for p in positions], [p + 9 for p in positions], positions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one_hot_regions(regions, given, width, alphabet)
    assert isinstance(found, OneHotRegions)
    assert found.X.shape == (len(rows), 4, width) and found.X.dtype == torch.float32 and found.X.is_contiguous()
    starts = [summit - width // 2 for summit in positions]
    want = [genome[name][start : start + width].upper() for name, start in zip(names, starts, strict=True)]
    assert decode(found.X, alphabet) == want
    assert found.regions.starts.tolist() == starts
    assert found.regions.ends.tolist() == [start + width for start in starts]
    assert found.regions.summits.tolist() == list(positions) and found.regions.lines.tolist() == regions.lines.tolist()
    assert found.kept.all() and found.kept.dtype == bool and found.dropped == []


def test_many_windows_are_all_encoded(monkeypatch):
    monkeypatch.setattr("yuzu.regions._AT_ONCE", 4)
    genome = random_genome({"a": 60})
    regions = Regions(["a"] * 11, range(11), range(10, 21))
    assert decode(one_hot_regions(regions, genome).X) == [genome["a"][i : i + 10].upper() for i in range(11)]


def test_regions_as_they_are():
    genome = random_genome({"a": 60})
    regions = Regions(["a", "a"], [3, 10], [8, 15], [3, 14])
    found = one_hot_regions(regions, genome)
    assert decode(found.X) == [genome["a"][3:8].upper(), genome["a"][10:15].upper()]
    assert found.regions.starts.tolist() == [3, 10] and found.regions.summits.tolist() == [3, 14]
    with pytest.raises(YuzuError, match=r"width: got None for regions of several lengths \(5 in row 0, 6 in row 1\)"):
        one_hot_regions(Regions(["a", "a"], [3, 10], [8, 16]), genome)


def test_midpoint_and_own_width_give_the_region_itself():
    genome = random_genome({"a": 60})
    for width in (6, 7):
        regions = Regions(["a", "a"], [3, 10], [3 + width, 10 + width])
        assert torch.equal(one_hot_regions(regions, genome, width).X, one_hot_regions(regions, genome).X)


def test_dropped_regions(tmp_path):
    genome = random_genome({"chr1": 40, "chr2": 10}) | {"chr3": "ACGTN" * 4 + "nNRyACGTAC"}
    lines = [
        "chr1\t3\t7\ta",  # one base over the start: summit 5, window -1 to 11
        "chr1\t4\t8\tb",  # at the start
        "chr1\t31\t37\tc",  # at the end: summit 34, window 28 to 40
        "chr1\t32\t38\td",  # one over the end
        "chrUn_1\t0\t9\te",
        "chr2\t4\t6\tf",  # shorter than the window
        "chr3\t4\t8\tg",  # 3 N of 12
        "chr3\t20\t24\th",  # 5 unknown of 12
    ]
    path = write(tmp_path, "#head\n" + "\n".join(lines))
    with pytest.warns(YuzuWarning) as caught:
        found = one_hot_regions(path, genome, width=12, max_unknown=0.25)
    assert found.kept.tolist() == [False, True, True, False, False, False, True, False]
    assert found.X.shape == (3, 4, 12) and len(found.regions) == 3
    assert found.regions.starts.tolist() == [0, 28, 0] and found.regions.ends.tolist() == [12, 40, 12]
    assert decode(found.X[:2]) == [genome["chr1"][:12].upper(), genome["chr1"][28:].upper()]
    assert found.dropped == [
        Dropped(0, "the window runs over an end of its chromosome: chr1:-1-11, of length 40"),
        Dropped(3, "the window runs over an end of its chromosome: chr1:29-41, of length 40"),
        Dropped(4, "the genome has no such chromosome: 'chrUn_1'"),
        Dropped(5, "the window runs over an end of its chromosome: chr2:-1-11, of length 10"),
        Dropped(7, "too many unknown letters: 5 of the 12 of chr3:16-28"),
    ]
    (warning,) = caught
    assert str(warning.message) == (
        "one_hot_regions dropped 5 of 8 regions: 3 because the window runs over an end of its chromosome, "
        "1 because the genome has no such chromosome, 1 because too many unknown letters; `dropped` of the result lists them"
    )
    assert warning.filename == __file__
    write_bed(tmp_path / "kept.bed", found.regions)
    assert (tmp_path / "kept.bed").read_text().splitlines() == [lines[1], lines[2], lines[6]]


def test_unknown_letters_are_columns_of_zeros():
    found = one_hot_regions(Regions(["a"], [0], [14]), {"a": "ANCRYSWKMBDHVg"})
    assert decode(found.X) == ["ANCNNNNNNNNNNG"]
    assert one_hot_regions(Regions(["a"], [0], [3]), {"a": "nNN"}).X.sum() == 0, "kept by default"
    with pytest.raises(YuzuError, match="too many unknown letters: 3 of the 3"):
        one_hot_regions(Regions(["a"], [0], [3]), {"a": "nNN"}, max_unknown=0.99)
    with pytest.warns(YuzuWarning, match="dropped 1 of 2"):
        assert one_hot_regions(Regions(["a"] * 2, [0, 1], [3, 4]), {"a": "NACG"}, max_unknown=0).kept.tolist() == [False, True]


@pytest.mark.parametrize("alphabet", ["ACGT", "AGCT"])
def test_minus_strand(alphabet):
    genome = {"a": "AACGTTTNRacgtttg"}
    regions = Regions(["a"] * 5, [0, 0, 9, 5, 5], [9, 9, 18, 14, 14], strands=["+", "-", "-", "-", "."])
    with pytest.warns(YuzuWarning, match="dropped 1 of 5"):
        plus = one_hot_regions(regions, genome, alphabet=alphabet)
    assert decode(plus.X, alphabet) == ["AACGTTTNN", "AACGTTTNN", "TTNNACGTT", "TTNNACGTT"]
    assert not plus.regions.flipped.any()
    with pytest.warns(YuzuWarning, match="dropped 1 of 5"):
        both = one_hot_regions(regions, genome, alphabet=alphabet, reverse_complement=True)
    assert decode(both.X, alphabet) == ["AACGTTTNN", "NNAAACGTT", "AACGTNNAA", "TTNNACGTT"]
    assert both.regions.flipped.tolist() == [False, True, True, False]
    assert both.regions.starts.tolist() == plus.regions.starts.tolist(), "coordinates stay those of the plus strand"


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.bool, torch.bfloat16])
def test_dtype(dtype):
    X = one_hot_regions(Regions(["a"], [0], [3]), {"a": "ANc"}, dtype=dtype).X
    assert X.dtype == dtype and X.int().tolist() == [[[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("kwargs, text", [
    ({"regions": Regions([], [], [])}, "regions: got none, want Regions with at least one row, or a BED file"),
    ({"regions": [("a", 0, 3)]}, "regions: got list, want Regions"),
    ({"genome": 5}, "genome: got int, want a FASTA file, a pyfaidx.Fasta or sequences by chromosome"),
    ({"genome": "ACGT"}, None),  # a str is a path
    ({"genome": {"a": b"ACGTACGT"}}, "genome: got .* letters for a:0-3, want 3; is it damaged, or no str"),
    ({"genome": {"a": "AC-T"}}, "genome: got '-' at a:2 .from 0., want letters of DNA"),
    ({"genome": {"a": "ACUT"}}, "genome: got 'U' at a:2"),
    ({"genome": {"1": "ACGT", "2": "A"}}, "regions: all 1 were dropped, 1 because the genome has no such chromosome; the first is row 0, .*: 'a'; the genome has '1', '2', ..."),
    ({"width": 0}, "width: got 0, want an integer, 1 or more, or None"),
    ({"width": 2.0}, "width: got 2.0"),
    ({"width": True}, "width: got True"),
    ({"alphabet": "ACGU"}, "alphabet: got 'ACGU', want the letters of DNA, 'ACGT', in some order"),
    ({"alphabet": "ACG"}, "alphabet: got 'ACG'"),
    ({"dtype": "float"}, "dtype: got 'float', want a torch.dtype"),
    ({"reverse_complement": "-"}, "reverse_complement: got '-', want True or False"),
    ({"max_unknown": 1.5}, "max_unknown: got 1.5, want a fraction between 0 and 1"),
    ({"max_unknown": "none"}, "max_unknown: got 'none'"),
    ({"max_unknown": float("nan")}, "max_unknown: got nan"),
])
def test_bad_arguments(kwargs, text):
    with pytest.raises(YuzuError if text else FileNotFoundError, match=text):
        one_hot_regions(**{"regions": Regions(["a"], [0], [3]), "genome": {"a": "ACGT"}, **kwargs})
