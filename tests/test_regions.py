"""Regions of BED and narrowPeak files."""

import gzip
import warnings

import numpy as np
import pytest

from tests.genomes import NARROW, columns, write
from yuzu.errors import YuzuError, YuzuWarning
from yuzu.regions import read_regions

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
