"""Files of variants: every kind of line of a VCF, every schema of the tables, and what is refused."""

import gzip

import pandas
import pytest

from tests.genomes import write
from yuzu import YuzuError, variants

HEAD = "##fileformat=VCFv4.2\n##INFO=<ID=X,Number=1,Type=String,Description=\"a\tb\">\n"
TITLES = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample\n"
REST = "\t.\tPASS\t.\tGT\t0/1\n"
LINES = [
    ("chr1\t101\trs1\tA\tG", [("chr1", 100, "A", "G", "rs1", "ok")]),
    ("chr1\t102\trs2;x\ta\tg,T,<DEL>", [("chr1", 101, "A", b, "rs2;x", s) for b, s in (("G", "ok"), ("T", "ok"), ("<DEL>", "symbolic"))]),
    ("chr2\t5\t.\tACG\tA,*", [("chr2", 4, "ACG", "A", ".", "ok"), ("chr2", 4, "ACG", "*", ".", "symbolic")]),
    ("chr2\t6\tbnd\tG\tG]17:198982],]13:123456]T,.A,A.", [("chr2", 5, "G", b, "bnd", "symbolic") for b in ("G]17:198982]", "]13:123456]T", ".A", "A.")]),
    ("X\t7\tn\tN\tA", [("X", 6, "N", "A", "n", "not_acgt")]),
    ("X\t8\tr\tA\tR", [("X", 7, "A", "R", "r", "not_acgt")]),
    ("X\t9\tm\tA\t.", [("X", 8, "A", ".", "m", "no_alternative")]),
    ("X\t9\tm\tA\t", [("X", 8, "A", ".", "m", "no_alternative")]),
    ("X\t0\ttelomere\tN\tA", [("X", -1, "N", "A", "telomere", "not_acgt")]),
    ("GL000.1\t9\t.\tA\tA", [("GL000.1", 8, "A", "A", ".", "ok")]),
]  # fmt: skip


def vcf(end="\n"):
    return (HEAD + TITLES + "".join(line + REST for line, _ in LINES)).replace("\n", end)


def rows(frame):
    return list(frame[["chrom", "pos", "ref", "alt", "id", "status"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_kind_of_line(tmp_path, end, packed):
    content = vcf(end).encode()
    path = write(tmp_path, gzip.compress(content) if packed else content, "some.vcf.gz" if packed else "some.vcf")
    found = variants.read(path)
    assert list(found.columns) == ["chrom", "pos", "ref", "alt", "id", "status"] and found.pos.dtype == "int64"
    assert rows(found) == [row for _, expected in LINES for row in expected]


def test_blocks_of_bgzip(tmp_path):
    """bgzip's files are several gzip members, one after the other."""
    lines = vcf().encode().splitlines(keepends=True)
    path = write(tmp_path, b"".join(gzip.compress(line) for line in lines) + gzip.compress(b""), "some.vcf.bgz")
    assert len(variants.read(path)) == sum(len(expected) for _, expected in LINES)


@pytest.mark.parametrize("content", ["", HEAD, HEAD + TITLES, "\n\n", HEAD + TITLES + "\n"])
@pytest.mark.parametrize("name", ["some.vcf", "some.tsv"])
def test_empty_files_give_empty_frames(tmp_path, content, name):
    found = variants.read(write(tmp_path, content, name))
    assert len(found) == 0 and list(found.columns) == ["chrom", "pos", "ref", "alt", "id", "status"]


def test_samples_are_not_read(tmp_path):
    path = write(tmp_path, HEAD + TITLES + "chr1\t4\t.\tA\tC" + "\t0|1" * 3000 + "\n", "some.vcf")
    assert rows(variants.read(path)) == [("chr1", 3, "A", "C", ".", "ok")]


def test_vcf_is_known_by_its_first_line_and_needs_no_header(tmp_path):
    assert len(variants.read(write(tmp_path, vcf(), "some.txt"))) == len(variants.read(write(tmp_path, vcf(), "some.vcf")))
    assert rows(variants.read(write(tmp_path, "1\t4\t.\tA\tC\n", "bare.vcf"))) == [("1", 3, "A", "C", ".", "ok")]


SCHEMAS = {
    "chrombpnet": "chr1\t101\tA\tg\trs1\nchr2\t7\tACG\t-\trs2\n",
    "original": "chr1\t101\trs1\tA\tg\nchr2\t7\trs2\tACG\t-\n",
    "plink": "chr1\trs1\t0\t101\tA\tg\nchr2\trs2\t0.1\t7\tACG\t-\n",
    "bed": "chr1\t100\t101\tA\tg\trs1\nchr2\t6\t9\tACG\t-\trs2\n",
}


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_tables_of_variant_scorer(tmp_path, schema, told):
    path = write(tmp_path, SCHEMAS[schema], "some.tsv")
    found = variants.read(path, schema if told else None)
    assert rows(found) == [("chr1", 100, "A", "G", "rs1", "ok"), ("chr2", 6, "ACG", "", "rs2", "ok")]


def test_names_of_files_tell_the_schema(tmp_path):
    for name, schema in (("a.bim", "plink"), ("a.bed.gz", "bed")):
        assert variants.read(write(tmp_path, SCHEMAS[schema], name)).pos.tolist() == [100, 6]


def test_a_header_tells_the_columns(tmp_path):
    text = "variant_id\tchr\tpos\tallele1\tallele2\tother\nrs1\tchr1\t101\tA\tG\t3\n"
    assert rows(variants.read(write(tmp_path, text, "a.tsv"))) == [("chr1", 100, "A", "G", "rs1", "ok")]
    assert rows(variants.read(write(tmp_path, "#" + text.replace("variant_id\tchr", "chr\tvariant_id").replace("rs1\tchr1", "chr1\trs1"), "a.tsv")))[0][:2] == ("chr1", 100)  # fmt: skip


def test_scores_that_were_written_are_read_as_they_were(tmp_path):
    """Such a table counts from 0, as the frame does."""
    frame = variants.read(write(tmp_path, SCHEMAS["bed"], "a.bed"))
    frame.assign(delta=1.0).to_csv(tmp_path / "scores.tsv", sep="\t", index=False)
    assert rows(variants.read(tmp_path / "scores.tsv")) == rows(frame)


REFUSED = {
    "chr1\t101\trs1\tA\n": ("a.vcf", None, r"line 1: got 4 columns, want at least 5"),
    "chr1\t1e1.5\trs1\tA\tC\n": ("a.vcf", None, r"line 1: got '1e1\.5' in column 2, want a position"),
    "chr1\t-4\trs1\tA\tC\n": ("a.vcf", None, r"line 1: got '-4' in column 2"),
    "\t4\trs1\tA\tC\n": ("a.vcf", None, r"line 1: got nothing in column 1"),
    "chr1\t7\tA\tC\tx\nchr1\tseven\tA\tC\tx\n": ("a.tsv", "chrombpnet", r"line 2: got 'seven' in column 2"),
    "chr1\t7\tA\tC\tG\n": ("a.tsv", None, r"fit the schemas 'chrombpnet' and 'original'; say which"),
    "one two three four five\n": ("a.tsv", None, r"fit no schema"),
    "chr\tstart\tend\tallele1\tallele2\nchr1\t1\t2\tA\tC\n": ("a.tsv", None, r"line 1: got a header .*'start'"),
    "\x00\xff": ("a.vcf", None, r"not even text|got 1 columns"),
}


@pytest.mark.parametrize("content", REFUSED)
def test_bad_lines_are_named(tmp_path, content):
    name, schema, message = REFUSED[content]
    with pytest.raises(YuzuError, match=message):
        variants.read(write(tmp_path, content.encode("latin-1"), name), schema)


def test_bad_arguments(tmp_path):
    with pytest.raises(YuzuError, match="schema must be one of 'vcf'"):
        variants.read(write(tmp_path, "", "a.vcf"), "VCF")
    with pytest.raises(FileNotFoundError):
        variants.read(tmp_path / "missing.vcf")
    with pytest.raises(YuzuError, match="path must be"):
        variants.read(3)


def test_pandas_is_named_where_it_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path, SCHEMAS["bed"], "a.bed")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        variants.read(path)
    assert pandas.DataFrame
