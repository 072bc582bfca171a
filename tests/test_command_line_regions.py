"""The command line: scores of regions and the peaks that they belong to."""

import numpy as np
import pytest
import torch

import yuzu
from tests.jobs import SEQUENCES, read
from tests.oracle import assert_close
from yuzu import command_line
from yuzu.command_line import commands
from yuzu.command_line.inputs import read_sequences
from yuzu.command_line.options import ALPHABETS
from yuzu.command_line.scores_file import DESCRIPTIONS, DESCRIPTIONS_OF_REGIONS
from yuzu.regions import read_regions
from yuzu.sequence import one_hot_encode

h5py = pytest.importorskip("h5py", reason="the command line writes HDF5")


def test_regions(job, tmp_path, capsys):
    """Windows on summits; one that runs over the end of its chromosome is left out."""
    model, arguments = job
    genome = {"chr1": "".join(SEQUENCES), "chr2": SEQUENCES[2] * 2}
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{text}\n" for name, text in genome.items()))
    lines = ["chr1\t20\t50\tp\t0\t.\t1\t1\t1\t13", "chr2\t0\t30\tq\t0\t.\t1\t1\t1\t3", "chr2\t5\t35\tr\t0\t.\t1\t1\t1\t15"]
    (tmp_path / "peaks.narrowPeak").write_text("".join(line + "\n" for line in lines))
    place = arguments.index("--fasta")
    given = [*arguments[:place], *arguments[place + 2 :], "--regions", "peaks.narrowPeak", "--genome", "genome.fa", "--width", "20"]
    with pytest.warns(yuzu.YuzuWarning, match="1 of 3"):
        assert command_line.main([*given, "--output", "delta", "--alphabet", "agct"]) == 0
    found = read()
    assert [n.decode() for n in found["names"]] == ["chr1:23-43", "chr2:10-30"]
    X = one_hot_encode([genome["chr1"][23:43], genome["chr2"][10:30]], alphabet="AGCT")
    assert np.array_equal(found["sequences"], X.numpy())
    assert_close(torch.from_numpy(found["scores"]), yuzu.naive_ism(model, X, output="delta", device="cpu"))
    assert (tmp_path / "s.h5.bed").read_text().splitlines() == [lines[0], lines[2]]
    for change, message in [
        (["--fasta", "x.fa"], "either --fasta, or --regions"),
        (["--genome", "none.fa"], "no file none.fa"),
        (["--regions", "none.bed"], "no file none.bed"),
        (["--alphabet", "protein"], "--regions are DNA"),
        (["--width", "0"], "width"),
    ]:
        assert command_line.main([*given, *change]) == 2
        assert message in capsys.readouterr().err
    capsys.readouterr()
    for change in (["--width", "20"], ["--genome", "genome.fa"], ["--max-unknown", "0.5"], ["--max-unknown", "1"], ["--reverse-complement"]):
        assert command_line.main([*arguments, *change]) == 2
        assert change[0] in (said := capsys.readouterr().err) and "are for --regions" in said
    assert command_line.main([*arguments[:place], *arguments[place + 2 :], "--regions", "peaks.narrowPeak"]) == 2
    assert "--regions needs --genome" in capsys.readouterr().err

COLUMNS = {
    "names": ["chr1:23-43", "chr2:10-30"], "chrom": ["chr1", "chr2"], "start": [23, 10], "end": [43, 30], "strand": ["-", "+"],
    "summit": [33, 20], "peak_name": ["p", "r é"], "peak_start": [20, 5], "peak_end": [50, 35], "peak_strand": ["-", "+"],
}


def columns_of(path="s.h5"):
    with h5py.File(path) as file:
        return {name: (file[name].asstr()[:] if file[name].dtype == object else file[name][:]).tolist() for name in COLUMNS if name in file}


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
def test_what_was_scored_and_its_peak_stand_in_every_row(peaks, tmp_path):
    """The window and the peak differ: neither is to be taken for the other."""
    model, arguments, genome, lines = peaks
    assert command_line.main([*arguments, "--output", "delta"]) == 0
    assert columns_of() == COLUMNS
    found = read()
    for row, (chrom, start, end, strand) in enumerate(zip(*(COLUMNS[c] for c in ("chrom", "start", "end", "strand")), strict=True)):
        text = genome[chrom][start:end]
        X = one_hot_encode([text.translate(str.maketrans("ACGT", "TGCA"))[::-1] if strand == "-" else text])
        assert np.array_equal(found["sequences"][row], X[0].numpy())
        assert_close(torch.from_numpy(found["scores"][row : row + 1]), yuzu.naive_ism(model, X, output="delta", device="cpu"))
    assert (tmp_path / "s.h5.bed").read_text().splitlines() == [lines[0], lines[2]]
    windows = [line.split("\t") for line in (tmp_path / "s.h5.windows.bed").read_text().splitlines()]
    order = ("chrom", "start", "end", "peak_name", None, "strand", "peak_start", "peak_end", "summit")
    assert windows == [[str(COLUMNS[name][row]) if name else "0" for name in order] for row in range(2)]
    kept, scored = read_regions(tmp_path / "s.h5.bed"), read_regions(tmp_path / "s.h5.windows.bed")
    assert kept.starts.tolist() == COLUMNS["peak_start"] and kept.summits.tolist() == scored.summits.tolist() == COLUMNS["summit"]
    assert scored.starts.tolist() == COLUMNS["start"] and scored.names.tolist() == kept.names.tolist() == COLUMNS["peak_name"]
    with h5py.File("s.h5") as file:
        for name in file:
            assert file[name].attrs["description"] in DESCRIPTIONS_OF_REGIONS[name].format(alphabet="ACGT")


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
@pytest.mark.parametrize("missing", [set(COLUMNS) - {"names"}, {"peak_name"}])
def test_a_file_of_an_older_version_gets_the_columns_it_lacks(peaks, missing, monkeypatch):
    _, arguments, _, _ = peaks
    assert command_line.main(arguments) == 0
    before = read()
    with h5py.File("s.h5", "a") as file:
        for name in missing:
            del file[name]
        file["done"][1] = False
    monkeypatch.setattr(commands, "lay_out", None)
    assert command_line.main(arguments) == 0
    after = read()
    assert columns_of() == COLUMNS and after["done"].all() and np.array_equal(after["scores"][0], before["scores"][0])
    assert_close(torch.from_numpy(after["scores"]), torch.from_numpy(before["scores"]))


@pytest.mark.filterwarnings("ignore:one_hot_regions dropped")
@pytest.mark.parametrize("old, new, column", [("\tp\t", "\tother\t", "peak_name"), ("\t20\t50\t", "\t19\t51\t", "peak_start"), ("\t+\t", "\t.\t", "peak_strand")])
def test_the_same_windows_for_other_peaks(peaks, capsys, old, new, column, tmp_path):
    _, arguments, _, lines = peaks
    assert command_line.main(arguments) == 0
    text = "".join(line + "\n" for line in lines).replace(old, new, 1).replace("\t13.0", "\t14.0" if column == "peak_start" else "\t13.0")
    (tmp_path / "peaks.narrowPeak").write_text(text)
    capsys.readouterr()
    assert command_line.main(arguments) == 2
    assert f"holds the same windows for other peaks (`{column}` differs)" in capsys.readouterr().err


def test_a_file_of_sequences_has_no_columns_of_peaks(job):
    assert command_line.main(job[1]) == 0
    with h5py.File("s.h5") as file:
        assert set(file) == set(DESCRIPTIONS)
        assert {name: file[name].attrs["description"].format(alphabet="ACGT") for name in file} == {
            name: text.format(alphabet="ACGT") for name, text in DESCRIPTIONS.items()
        }


@pytest.mark.parametrize("alphabet", ["dna", "agct", "rna", "protein"])
def test_letters_for_several_bases_are_unknown(tmp_path, alphabet):
    """As in regions of a genome, which has them."""
    text = {"rna": "ACGUNRYSWKMBDHVacgun", "protein": "ACDEFGXBZJUO*acdefgx"}.get(alphabet, "ACGTNRYSWKMBDHVacgtn")
    (tmp_path / "x.fa").write_text(f">a\n{text}\n")
    _, X = read_sequences(tmp_path / "x.fa", alphabet)
    known = ALPHABETS[alphabet]
    assert [bool(column.any()) for column in X[0].T] == [letter.upper() in known for letter in text]
