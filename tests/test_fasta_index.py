"""FASTA files of genomes, packed or not, and their indices."""

import builtins
import gzip
import os
import tempfile
import warnings

import pytest

from tests.genomes import write, write_fasta
from yuzu._engine import fasta_index
from yuzu.errors import YuzuError
from yuzu.regions import Regions, one_hot_regions
from yuzu.sequence import decode


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
