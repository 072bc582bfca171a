"""Regions of BED and narrowPeak files, and their one-hot sequences."""

import builtins
import gzip
import os
import random
import tempfile
import warnings

import numpy as np
import pytest
import torch

from yuzu._engine import fasta_index
from yuzu.errors import YuzuError, YuzuWarning
from yuzu.regions import Dropped, OneHotRegions, Regions, one_hot_regions, read_regions, write_bed
from yuzu.sequence import decode


def write(tmp_path, content, name="some.bed"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def random_genome(lengths, seed=0):
    rng = random.Random(seed)
    return {name: "".join(rng.choices("ACGTacgt", k=length)) for name, length in lengths.items()}


def write_fasta(tmp_path, genome, end="\n", name="genome.fa"):
    text = "".join(
        f">{name} of a test{end}" + "".join(f"{sequence[i:i + 7]}{end}" for i in range(0, len(sequence), 7))
        for name, sequence in genome.items()
    )
    return write(tmp_path, text, name)


# ------------------------------------------------------------------ read_regions

NARROW = (
    "chr1\t100\t200\tpeak one\t900\t+\t5.5\t-1\t1e-3\t30\n"
    "chr2\t50\t61\tpeak_2\t10\t-\t5\t4.25\t3\t-1\n"
    "chrX\t0\t9\t.\t0\t.\t.\t.\t.\t8\n"
)


def columns(regions):
    return [
        column.tolist()
        for column in (regions.chromosomes, regions.starts, regions.ends, regions.summits, regions.names, regions.strands)
    ]


NARROW_COLUMNS = [
    ["chr1", "chr2", "chrX"], [100, 50, 0], [200, 61, 9], [130, 55, 8], ["peak one", "peak_2", "."], ["+", "-", "."],
]


@pytest.mark.parametrize("content", [
    NARROW, NARROW.rstrip(), NARROW.replace("\n", "\r\n"), "\ufeff" + NARROW, "\n \n" + NARROW + "\n\n",
    "#chrom\tstart\ntrack name=a\nbrowser position chr1\n" + NARROW, NARROW.replace("chr2", "# note\nchr2"),
    gzip.compress(NARROW.encode(), mtime=0), gzip.compress(NARROW.replace("\n", "\r\n").encode(), mtime=0),
])
def test_narrow_peak_in_all_its_forms(tmp_path, content):
    path = write(tmp_path, content)
    for found in (read_regions(path), read_regions(str(path), summits=True)):
        assert columns(found) == NARROW_COLUMNS
        assert found.lines.tolist() == NARROW.splitlines()
        assert len(found) == 3 and not found.flipped.any()
        assert found.starts.dtype == found.ends.dtype == found.summits.dtype == np.int64
    assert read_regions(path, summits=False).summits.tolist() == [150, 55, 4]


@pytest.mark.parametrize("line, summit, name, strand", [
    ("chr1\t10\t20", 15, ".", "."),
    ("chr1\t10\t21", 15, ".", "."),
    ("chr1 10   20", 15, ".", "."),
    ("chr1 10 20 a 0 -", 15, "a", "-"),
    ("chr1\t10\t20\ta b\t0\t-", 15, "a b", "-"),
    ("chr1\t10\t20\t\t0\t", 15, ".", "."),
    ("chr1\t10\t20\ta\t0\t+\t5\t6\t7", 15, "a", "+"),  # broadPeak
    ("chr1\t10\t20\ta\t0\t+\t10\t20\t0\t2\t3,4\t0,6", 15, "a", "+"),  # BED12
    ("chr1\t10\t20\ta\t0\t+\t10\t20\t255,0,0\t2", 15, "a", "+"),  # BED10
    ("chr1\t10\t20\ta\t0\t+\t10\t20\t0\t1\t10,\t0,", 15, "a", "+"),  # BED12 of one block
    ("chr1\t10\t20\t.\t.\t.\t.\t.\t.\t2", 12, ".", "."),  # background regions of ChromBPNet
    ("chr1\t10\t20\ta\t0\t+\tinf\t-1\tnan\t0", 10, "a", "+"),
    ("chr1\t10\t20\ta\t0\t+\t\tNA\t\t3", 13, "a", "+"),  # pandas writes nothing for a missing number
    ("chr1\t10\t20\ta\t0\t+\t1\t2\t3\t-1.0", 15, "a", "+"),
    ("chr1\t10.0\t2e1\ta\t0\t+\t1\t2\t3\t4.", 14, "a", "+"),
    (" chr1 \t +10\t20 \ta\t0\t + \t1\t2\t3\t 4 ", 14, "a", "+"),
])
def test_what_a_line_may_be(tmp_path, line, summit, name, strand):
    assert columns(read_regions(write(tmp_path, line))) == [["chr1"], [10], [21 if "\t21" in line else 20], [summit], [name], [strand]]


def test_gzip_is_told_from_the_content_not_the_name(tmp_path):
    assert len(read_regions(write(tmp_path, NARROW, "plain.bed.gz"))) == 3
    assert len(read_regions(write(tmp_path, gzip.compress(NARROW.encode()), "zipped.bed"))) == 3


@pytest.mark.parametrize("content, text", [
    ("", r"some.bed: got no regions, want BED"),
    ("# only\ntrack a\n\n", r"some.bed: got no regions"),
    ("chr1\t1\n", r"some.bed, line 1: not BED; got \['chr1', '1'\], want chromosome, start and end"),
    (">chr1\nACGT\n", r"some.bed, line 1: not BED"),
    ("\t1\t2\n", r"some.bed, line 1: not BED"),
    ("chrom\tstart\tend\n" + NARROW, r"some.bed, line 1: got 'start', want start as an integer"),
    ("#c\n\nchr1\t1\t2\nchr1\t1.5\t2\n", r"some.bed, line 4: got '1.5', want start .* in column 2"),
    ("chr1\t1\t2e-3\n", r"some.bed, line 1: got '2e-3', want end .* in column 3"),
    ("chr1\t1\t1,000\n", r"some.bed, line 1: got '1,000', want end"),
    ("chr1\t1\t1e999999999\n", r"some.bed, line 1: got '1e999999999', want end"),
    ("chr1\t1_0\t20\n", r"some.bed, line 1: got '1_0', want start"),
    ("chr1\t\t20\n", r"some.bed, line 1: got '', want start"),
    ("chr1\tnan\t20\n", r"some.bed, line 1: got 'nan', want start"),
    ("chr1 1\t20\t30\n", r"some.bed, line 1: got 'chr1 1' in column 1, want a chromosome; columns stand between tabs"),
    ("chr1\t1\t2\nchr1\t1.0\t2\n", r"some.bed, line 2: got '1.0' in column 2, want an integer in digits, as on line 1"),
    ("chr1\t1\t2\nchr1\t1\t2e0\n", r"some.bed, line 2: got '2e0' in column 3, want .* as on line 1"),
    ("chr1\t-1\t2\n", r"some.bed, line 1: got '-1', want start as an integer, 0 or more"),
    ("chr1\t1\t" + "9" * 20, r"some.bed, line 1: got '9+', want end"),
    ("chr1\t1\t٣\n", r"some.bed, line 1: got '٣', want end"),
    ("chr1\t5\t5\n", r"some.bed, line 1: got end 5, want more than the start 5"),
    ("chr1\t1\t2\ta\t0\t*\n", r"some.bed, line 1: got '\*' in column 6, want the strand"),
    ("chr1\t1\t2\nchr1\t1\t2\ta\n", r"some.bed, line 2: got 4 columns, want 3 as on line 1"),
    (NARROW + NARROW.replace("\t30\n", "\t100\n"), r"some.bed, line 4: got 100 in column 10, .* less than the region's width 100"),
    (NARROW + NARROW.replace("\t30\n", "\t-2\n"), r"some.bed, line 4: got '-2', want the summit's offset or -1 in column 10"),
    (NARROW.replace("\t30\n", "\t\n"), r"some.bed, line 1: got '', want the summit's offset or -1 in column 10"),
    (NARROW.replace("\t30\n", "\tfour\n"), r"some.bed, line 1: got 'four', want the summit's offset or -1 in column 10"),
    (NARROW.replace("\t30\n", "\t4.5\n"), r"some.bed, line 1: got '4.5', want .* in column 10"),
    (NARROW.replace("\t8\n", "\tnan\n"), r"some.bed, line 3: got 'nan', want .* in column 10"),
    (NARROW.replace("\t8\n", "\t8.0\n"), r"some.bed, line 3: got '8.0' in column 10, want an integer in digits, as on line 1"),
    (NARROW.replace("\t3\t-1\n", "\t9,9,9\t2\n"), r"some.bed, line 2: got '9,9,9' in column 9, want a number, for line 1 looks like narrowPeak; pass summits=True"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", r"some.bed, after line 0: not BED, not even text"),
    (gzip.compress(NARROW.encode(), mtime=0)[:-12], r"some.bed, after line \d: damaged gzip file"),
])
def test_bad_files(tmp_path, content, text):
    with pytest.raises(YuzuError, match=text):
        read_regions(write(tmp_path, content))


@pytest.mark.parametrize("rows, summits", [
    (["4.0", "6.0"], [14, 16]), (["4e0", "0.6e1"], [14, 16]), (["4.0", "-1.0"], [14, 15]), (["-1.0", "4"], [15, 14]), (["+4", " 6 "], [14, 16]),
])
def test_summits_in_any_spelling(tmp_path, rows, summits):
    """pandas makes floats of a column in which a row had none; these summits were taken for midpoints."""
    text = "".join(f"chr1\t10\t20\tp\t5\t.\t1.5\t\t-1\t{row}\n" for row in rows)
    for content in (text, gzip.compress(text.encode())):
        assert read_regions(write(tmp_path, content)).summits.tolist() == summits


@pytest.mark.parametrize("end", ["\tx", "\tx\ty", "\t\t\t"])
def test_a_column_of_summits_that_is_not_read_is_said(tmp_path, end):
    """More than ten columns, where tools append their own, are no narrowPeak; nor are ten with text among the numbers."""
    line = "chr1\t10\t20\ta\t0\t+\t1\t2\t3\t4"
    path = write(tmp_path, line + end)
    with pytest.warns(YuzuWarning, match=r"some.bed, line 1: got 1\d columns, narrowPeak has ten; column 10 is not read"):
        assert read_regions(path).summits.tolist() == [15]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_regions(path, summits=True).summits.tolist() == [14]
        assert read_regions(path, summits=False).summits.tolist() == [15]
    with pytest.warns(YuzuWarning, match="got ten columns, but .* in columns 7 to 9, where narrowPeak has numbers"):
        read_regions(write(tmp_path, line.replace("\t1\t2", "\thigh\t2")))


@pytest.mark.parametrize("line", [
    "chr1\t10\t20", "chr1\t10\t20\ta\t0\t+\t10\t20\t255,0,0\t2", "chr1\t10\t20\ta\t0\t+\t10\t20\t0\t2\t3,4\t0,6",
    "chr1\t10\t20" + "\t7" * 3 + "\tword" * 3000,
])
def test_no_word_about_columns_that_are_no_summits(tmp_path, line):
    line = line.replace("\t7\t7\t7", "\t7\t7\t+")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_regions(write(tmp_path, line)).summits.tolist() == [15]


def test_a_header_is_told(tmp_path):
    with pytest.raises(YuzuError, match=r"line 1: got 'start', want start as an integer.*is this a header\? Start it with '#'"):
        read_regions(write(tmp_path, "chrom\tstart\tend\n" + NARROW))


def test_summits_asked_for(tmp_path):
    with pytest.raises(YuzuError, match=r"some.bed, line 1: got 3 columns, want the summit in column 10"):
        read_regions(write(tmp_path, "chr1\t1\t2\n"), summits=True)
    line = "chr1\t10\t20\ta\t0\t+\t1\t2\t255,0,0\t3"
    assert read_regions(write(tmp_path, line), summits=True).summits.tolist() == [13]
    assert read_regions(write(tmp_path, line + "\tmore"), summits=True).summits.tolist() == [13]
    with pytest.raises(YuzuError, match="summits: got 'yes', want True, False or None"):
        read_regions(write(tmp_path, line), summits="yes")
    with pytest.raises(FileNotFoundError):
        read_regions(tmp_path / "absent.bed")


# ------------------------------------------------------------------ Regions and write_bed


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


# ------------------------------------------------------------------ one_hot_regions


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


# ------------------------------------------------------------------ FASTA files


def test_index_beside_the_genome(tmp_path):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = write_fasta(tmp_path, {"a": "ACGT" * 5})
    for _ in range(2):
        assert decode(one_hot_regions(Regions(["a"], [4], [8]), str(path)).X) == ["ACGT"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["genome.fa", "genome.fa.fai"]


GENOME = {"chr1": "ACGTTGCAAC" * 3 + "ACG", "chr2": "ttgcaNACGTR", "3": "G" * 10}


def records(width=10, end="\n", after="", of=GENOME):
    return "".join(
        f">{name} words{end}" + "".join(text[i : i + width] + end for i in range(0, len(text), width)) + after
        for name, text in of.items()
    )


def read_genome(path, of=GENOME):
    """Some windows of a genome's file, compared with its sequences."""
    rows = [(name, start) for name, text in of.items() for start in range(0, len(text) - 7, 3)]
    regions = Regions([name for name, _ in rows], [start for _, start in rows], [start + 8 for _, start in rows])
    found = decode(one_hot_regions(regions, path).X)
    assert found == [of[name][start : start + 8].upper().replace("R", "N") for name, start in rows]
    return found


FORMS = {
    "as it should be": records(),
    "Windows": records(end="\r\n"),
    "no final newline": records()[:-1],
    "no final newline on Windows": records(end="\r\n")[:-2],
    "a blank line after each record": records(after="\n"),
    "a blank line after each record on Windows": records(end="\r\n", after="\r\n"),
    "a blank line of spaces": records(after=" \t\n"),
    "blank lines before the first": "\n\n" + records(),
    "blank lines after the last": records() + "\n\n \n\n",
    "a blank line after a header": records().replace("words\n", "words\n\n"),
    "a byte order mark": "\ufeff" + records(),
    "comments before the first": ";of old\n; times\n" + records(),
    "lines as long as records": records(width=1000),
    "lines of one letter": records(width=1),
    "lines that end with their records": records(width=11),
    "records of two widths": records(of={"chr1": GENOME["chr1"]}) + records(5, of={"chr2": GENOME["chr2"], "3": GENOME["3"]}),
    "records with line ends of two kinds": records(of={"chr1": GENOME["chr1"]}) + records(5, "\r\n", of={"chr2": GENOME["chr2"], "3": GENOME["3"]}),
    "a blank after the mark": records().replace(">", "> "),
    "blanks after the last letters": records(of={**GENOME, "4": "ACGTACGT"}).replace("ACGTACGT", "ACGTACGT  "),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_genomes_that_can_be_read(tmp_path, form, large, monkeypatch):
    """By an index that is made, and again by the one that is there."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    if large:  # then an index is believed that fits
        monkeypatch.setattr(fasta_index, "LARGE", 0)
    monkeypatch.setattr(fasta_index, "CHUNK", 7)
    path = write(tmp_path, FORMS[form], "genome.fa")
    read_genome(path)
    index = (tmp_path / "genome.fa.fai").stat()
    if large:
        monkeypatch.setattr(fasta_index, "_read", None)
    read_genome(path)
    assert (tmp_path / "genome.fa.fai").stat().st_mtime_ns == index.st_mtime_ns, "written again"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "blanks after the last letters"])  # which it counts as letters
def test_an_index_is_what_pyfaidx_makes(tmp_path, form):
    pyfaidx = pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = write(tmp_path, FORMS[form], "genome.fa")
    try:
        theirs = pyfaidx.Faidx(str(path)).index
    except Exception:
        pytest.skip("pyfaidx cannot read it")
    (tmp_path / "genome.fa.fai").unlink()
    with fasta_index.index_of(str(path)) as found:
        rows = [line.split("\t") for line in open(found).read().splitlines()]
    assert [(name, int(n), int(first), int(line)) for name, n, first, line, _ in rows] == [
        (name, row.rlen, row.offset, row.lenc) for name, row in theirs.items()
    ]


BAD_FORMS = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", r"line 3: got no record, want a header"),
    "no header": (b"ACGT\n", "line 1: got 'ACGT', want a header such as '>chr1'"),
    "two blank lines": (records(after="\n\n"), r"line 7, record 'chr1': got a second blank line after the record.*take blank lines out"),
    "two blank lines on Windows": (records(end="\r\n", after="\r\n\r\n"), r"line 7, record 'chr1': got a second blank line"),
    "old Macs": (records(end="\r"), r"line 1: got a line end of old Macs \(CR alone\), want LF or CRLF; convert them: tr"),
    "old Macs, blank first": ("\r" + records(end="\r"), "line 1: got a line end of old Macs"),
    "old Macs without words": (">a\rACGT\r", "line 1: got a line end of old Macs"),
    "old Macs in between": (records().replace("ACGTTGCAAC\nACG", "ACGTTGCAAC\rACG", 1), r"line 2, record 'chr1': got a line end of old Macs"),
    "a blank line within": (records().replace("AAC\n", "AAC\n\n", 1), r"line 3, record 'chr1': got a blank line within the record"),
    "no letters": (records().replace(">chr2", ">chrE\n>chr2"), r"line 6, record 'chrE': got no letters, want a sequence; leave the record out"),
    "no letters at the end": (records() + ">chrE", r"line 11, record 'chrE': got no letters"),
    "no letters but blanks": (records() + ">chrE\n\n \n", r"line 11, record 'chrE': got no letters"),
    "a short line": (records().replace("ACGTTGCAAC\n", "ACG\nTTGCAAC\n", 1), r"line 2, record 'chr1': got 7|line 3, record 'chr1': got 7 letters on the line, want 3"),
    "a long line": (records().replace("\nACG\n", "\nACGACGACGACGA\n"), r"line 5, record 'chr1': got 13 letters on the line, want 10 .*wrap the file anew"),
    "a long line on Windows": (records(end="\r\n").replace("\nACG\r", "\nACGACGACGAC\r"), r"line 5, record 'chr1': got 11 letters on the line, want 10"),
    "line ends of two kinds": (records().replace("AAC\n", "AAC\r\n", 2).replace("AAC\r\n", "AAC\n", 1), r"line 3, record 'chr1': got line ends of Windows and of Unix"),
    "a name twice": (records() + records(), r"line 11, record 'chr1': got a second record of this name, the first being on line 1"),
    "no name": (records().replace(">3 words", ">"), r"line 9: got a header without a name"),
    "a name of blanks": (records().replace(">3 words", "> \t"), r"line 9: got a header without a name"),
    "a space within": (records().replace("TTGC", "TT C", 1), r"line 2, record 'chr1': got ' ', want letters only"),
    "a tab at the end of a line": (records().replace("AAC\n", "AAC\t\n", 1), r"line 2, record 'chr1': got '\\t', want letters only"),
    "numbers": (b">a\n1 ACGT\n", r"line 2, record 'a': got '1'"),
    "no ASCII": (b">a\n\xff\xfe\n", r"line 2, record 'a': got 'ÿ'"),
    "a name that is no UTF-8": (b">\xff\nACGT\n", r"line 1: got the name 'ÿ', want one in UTF-8"),
    "zeros at the end": (records().encode() + bytes(20), r"line 11, record '3': got '\\x00'"),
    "PNG": (b"\x89PNG\n\x00", r"line 1: got '\\x89PNG', want a header"),
    "a web page": (b"<!DOCTYPE html>\n<html>404</html>", "line 1: got '<!DOCTYPE html>', want a header"),
    "2bit": (b"\x43\x27\x41\x1a" + bytes(40), "line 1: got .*, want a header"),
    "FASTQ": (b"@read\nACGT\n+\nIIII\n", "line 1: got '@read', want a header"),
    "gzip": (gzip.compress(records().encode()), r"is compressed \(gzip\); unpack it"),
    "BAM": (bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000"), "packed with bgzip; rename it to end in '.gz'"),
    "zip": (b"PK\x03\x04" + bytes(30), r"is compressed \(zip\)"),
    "bzip2": (b"BZh91AY" + bytes(30), r"is compressed \(bzip2\)"),
}


@pytest.mark.parametrize("form", BAD_FORMS)
def test_genomes_that_cannot_be_read(tmp_path, form):
    """One line, that names the file, the line, the record and the remedy."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    content, text = BAD_FORMS[form]
    path = write(tmp_path, content, "genome.fa")
    with pytest.raises(YuzuError, match=text) as caught:
        one_hot_regions(Regions(["chr1"], [0], [2]), path)
    message = str(caught.value)
    assert message.startswith(f"genome: got {path}, w") and "\n" not in message and len(message) < len(str(path)) + 400
    assert [p.name for p in tmp_path.iterdir()] == ["genome.fa"], "no index of it is left"


STALE = {
    "chromosomes in another order": records(of=dict(reversed(GENOME.items()))),
    "other names": records(of={"chr2": GENOME["chr1"], "chr1": GENOME["chr2"], "3": GENOME["3"]}),
    "other widths": records(width=7),
    "an insertion": records(of={**GENOME, "chr1": "T" + GENOME["chr1"]}),
    "Windows": records(end="\r\n"),
    "one more": records(of={**GENOME, "chr4": "ACGTACGTTT"}),
    "one less": records(of={name: GENOME[name] for name in ("chr1", "chr2")}),
    "the same place and length": records().replace("chr1 words", "chr1 word").replace("\nACG\n", "\nACGT\n"),
    "other letters": records().replace("ACGTTG", "TTTTTG"),
}


def sequences_of(text):
    of, name = {}, ""
    for line in text.split():
        if line.startswith(">"):
            name = line[1:]
            of[name] = ""
        elif not line.startswith("word"):
            of[name] += line
    return of


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("age", [-1000, 0, 1000])
@pytest.mark.parametrize("form", STALE)
def test_a_stale_index_never_gives_other_letters(tmp_path, form, age, large, monkeypatch):
    """Whichever is newer: `cp -p` and unpacking keep the time of a file that takes another's place."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    if large:
        monkeypatch.setattr(fasta_index, "LARGE", 0)
    path = write(tmp_path, records(), "genome.fa")
    read_genome(path)
    index = tmp_path / "genome.fa.fai"
    write(tmp_path, STALE[form], "genome.fa")
    os.utime(path, (10**9, 10**9))
    os.utime(index, (10**9 + age, 10**9 + age))
    read_genome(path, sequences_of(STALE[form]))


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\xff\xfe", b"chr1\t33\t12\t10\n", b"chr1\t33\t12\tx\t11\n", b"chr1\t33\t12\t0\t0\n" * 3, b"chr1\t9999999999\t0\t10\t11\n"])
@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_index_is_made_anew(tmp_path, content, large, monkeypatch):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    if large:
        monkeypatch.setattr(fasta_index, "LARGE", 0)
    path, index = write(tmp_path, records(), "genome.fa"), write(tmp_path, content, "genome.fa.fai")
    os.utime(path, (1, 1))
    read_genome(path)
    assert index.read_text().startswith("chr1\t33\t")


def test_a_genome_from_the_future(tmp_path):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = write(tmp_path, "\ufeff" + records(), "genome.fa")  # which pyfaidx could not index by itself
    os.utime(path, (4e9, 4e9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_genome(path)
        read_genome(path)


def test_index_that_cannot_be_written(tmp_path, monkeypatch):
    """As root, who may write anywhere, the tests cannot have a folder that is read-only; a folder in its place is as good."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path, temporary = write(tmp_path, records(), "genome.fa"), tmp_path / "temporary"
    (tmp_path / "genome.fa.fai").mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_genome(path)
    assert (tmp_path / "genome.fa.fai").is_dir() and not list(temporary.iterdir())


@pytest.mark.parametrize("stale", [False, True])
def test_read_only_folder(tmp_path, stale, monkeypatch):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path, temporary = write(tmp_path, records(), "genome.fa"), tmp_path.with_name(tmp_path.name + ".temporary")
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    original = tempfile.mkstemp

    def refuse(*rest, dir=None, **named):
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied", str(dir))
        return original(*rest, dir=dir, **named)

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    if stale:
        write(tmp_path, "chr1\t5\t12\t10\t11\n", "genome.fa.fai")
    if os.geteuid():
        tmp_path.chmod(0o500)
    try:
        read_genome(path)
    finally:
        tmp_path.chmod(0o700)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("name", ["hg38.fa.gz", "hg38.fa.bgz", "hg38.FA.GZ"])
def test_a_name_that_says_packed(tmp_path, name):
    """pyfaidx goes by the ending of the name."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    for content, text in ((records(), "not compressed, whatever its name says; rename it"), (gzip.compress(b">a\nACGT\n"), r"compressed \(gzip\); unpack it, with 'gunzip'")):
        path = write(tmp_path, content, name)
        with pytest.raises(YuzuError, match=f"genome: got .*{name}, which is {text}"):
            one_hot_regions(Regions(["a"], [0], [2]), path)


def pack(path, text):
    bgzf = pytest.importorskip("Bio.bgzf", reason="packs as bgzip does")
    with bgzf.BgzfWriter(str(path), "wb") as file:
        file.write(text.encode())
    return path


@pytest.mark.parametrize("form", STALE)
def test_a_genome_packed_with_bgzip(tmp_path, form):
    """Its indexes are made, used and, when another file comes in its place, made anew."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = pack(tmp_path / "genome.fa.gz", records())
    read_genome(path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert set(before) == {"genome.fa.gz", "genome.fa.gz.fai", "genome.fa.gz.gzi"}
    read_genome(path)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    pack(path, STALE[form])
    os.utime(path, (10**9, 10**9))
    read_genome(path, sequences_of(STALE[form]))


def test_a_genome_packed_with_bgzip_that_cannot_be_read(tmp_path):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = pack(tmp_path / "genome.fa.gz", records())
    whole = path.read_bytes()
    for content in (whole[:-40], whole[:40], whole[:100] + bytes(20) + whole[120:]):
        path.write_bytes(content)
        with pytest.raises(YuzuError, match=r"genome: got .*genome.fa.gz, want FASTA packed with bgzip, whole") as caught:
            read_genome(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    (tmp_path / "genome.fa.gz.fai").mkdir()
    read_genome(path)  # with indexes elsewhere


def test_a_folder_and_a_pipe(tmp_path):
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    with pytest.raises(OSError, match=str(tmp_path)):
        one_hot_regions(Regions(["a"], [0], [2]), tmp_path)
    with pytest.raises(YuzuError, match="genome: got /dev/null, want FASTA in a file on disk"):
        one_hot_regions(Regions(["a"], [0], [2]), "/dev/null")


def test_a_genome_that_fails_when_it_is_read(tmp_path):
    pyfaidx = pytest.importorskip("pyfaidx", reason="opens FASTA files")
    fasta = pyfaidx.Fasta(str(write(tmp_path, records(), "genome.fa")))
    fasta.close()
    with pytest.raises(YuzuError, match=r"genome: chr1:0-8 cannot be read \(ValueError"):
        one_hot_regions(Regions(["chr1"], [0], [8]), fasta)


def test_gzipped_genome(tmp_path):
    """As UCSC has it: pyfaidx asks for biopython by the ending of the name, and cannot read it then either."""
    pytest.importorskip("pyfaidx", reason="opens FASTA files")
    path = write(tmp_path, gzip.compress(b">a\nACGT\n"), "hg38.fa.gz")
    with pytest.raises(YuzuError, match="genome: got .*hg38.fa.gz"):
        one_hot_regions(Regions(["a"], [0], [2]), path)


def test_without_pyfaidx_the_error_says_what_to_install(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "pyfaidx":
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    regions = Regions(["a"], [0], [3])
    with pytest.raises(ImportError, match=r"pip install pyfaidx$"):
        one_hot_regions(regions, write_fasta(tmp_path, {"a": "ACGT"}))
    assert decode(one_hot_regions(regions, {"a": "ACGT"}).X) == ["ACG"], "sequences by chromosome need no pyfaidx"
