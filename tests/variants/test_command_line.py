"""``yuzu variants``: the table of `yuzu.variants.score`, resumed, joined and refused."""

import gzip
import json
import sys

import numpy as np
import pandas
import pytest
import torch

from tests.variants.naive import chromosome
from yuzu import command_line, variants
from yuzu.command_line import variants as command
from yuzu.command_line.model import load_model

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.profile, self.counts = torch.nn.Conv1d(4, 5, 5, padding=2), torch.nn.Conv1d(5, 1, 3), torch.nn.Linear(5, 1)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return {"profile": self.profile(x), "counts": self.counts(x.mean(2))}

def log_counts(output):
    return output["counts"]

def change(before, after):
    return after["counts"] - before["counts"]
"""
TEXT = chromosome(300, 5)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "variants_net.py").write_text(NET)
    (tmp_path / "genome.fa").write_text(f">chr1\n{TEXT}\n")
    lines = [f"chr1\t{p}\trs{p}\t{TEXT[p - 1]}\t{'ACGT'[p % 4]},{TEXT[p - 1]}GA,<DEL>\n" for p in range(60, 75)]
    (tmp_path / "some.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\n" + "".join(lines))
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(load_model("variants_net.py:Net", None).state_dict(), f"fold{seed}.pt")
    yield [
        "variants", "--model", "variants_net.py:Net", "--weights", "fold0.pt", "--variants", "some.vcf", "--genome", "genome.fa",
        "--width", "50", "--scores", "logfc", "jsd", "--counts", "counts", "--profile", "profile", "--out", "s.tsv", "--device", "cpu",
        "--quiet", "--at-once", "7",
    ]  # fmt: skip
    sys.modules.pop("variants_net", None)


def with_options(arguments, **options):
    """The arguments with others, or without some: ``None``."""
    made = list(arguments)
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if option in made:
            at = made.index(option)
            stop = next((i for i in range(at + 1, len(made)) if made[i].startswith("--")), len(made))
            del made[at:stop]
        if value is not None:
            made += [option, *([value] if isinstance(value, str) else value)]
    return made


def expected(weights=("fold0.pt",), **settings):
    models = [load_model("variants_net.py:Net", __import__("pathlib").Path(name)) for name in weights]
    settings = {"scores": ("logfc", "jsd"), "counts": lambda y: y["counts"], "profile": lambda y: y["profile"], **settings}
    return variants.score(models, variants.read("some.vcf"), "genome.fa", 50, device="cpu", **settings)


def read(path="s.tsv"):
    texts = dict.fromkeys(("chrom", "ref", "alt", "id", "status"), str)
    frame = pandas.read_csv(path, sep="\t", dtype=texts, keep_default_na=False, na_values=["nan"])
    return frame.assign(ref=frame.ref.replace("-", ""), alt=frame.alt.replace("-", ""))


def assert_same(found, other):
    pandas.testing.assert_frame_equal(found, other, check_dtype=False, atol=1e-7, rtol=0)


def test_the_table_is_that_of_the_function(job, capsys):
    assert command_line.main(job) == 0
    assert_same(read(), expected())
    assert capsys.readouterr().out == "45 variants in s.tsv, 30 ok, 15 symbolic\n"
    assert variants.read("s.tsv").equals(variants.read("some.vcf")), "it is read back as it was"
    assert not __import__("pathlib").Path("s.tsv.parts").exists()


def test_options_reach_the_function(job):
    np.savetxt("peaks.txt", np.linspace(-1, 1, 30))
    scores = ["delta", "max_abs", "variants_net.py:change", "abs_logfc_x_jsd"]
    given = with_options(
        job, weights=["fold0.pt", "fold1.pt"], scores=scores, func="counts", indels="average", share="20", peaks="peaks.txt",
        predictions=[], reverse_complement=[], counts="variants_net.py:log_counts", out="s.tsv.gz", batch_size="5", alphabet="agct", target="0",
    )  # fmt: skip
    given = with_options(given, scores=[s for s in scores if ":" not in s])
    assert command_line.main(given) == 0
    settings = {"scores": ("delta", "max_abs", "abs_logfc_x_jsd"), "func": lambda y: y["counts"], "target": 0, "alphabet": "AGCT"}
    found = expected(
        ("fold0.pt", "fold1.pt"), indels="average", peaks=np.linspace(-1, 1, 30), predictions=True, reverse_complement=True, **settings
    )  # fmt: skip
    assert gzip.decompress(open("s.tsv.gz", "rb").read()) and list(read("s.tsv.gz")) == list(found)
    near = read("s.tsv.gz").drop(columns=[c for c in found if c.startswith(("abs", "ref_c", "alt_c", "quan", "act"))])
    even = found.alt.str.len() == 1  # sharing moves the window of substitutions, which this model's mean does not see
    assert_same(near[~even], found[near.columns][~even])


def test_a_function_of_both_alleles(job):
    assert command_line.main(with_options(job, scores=["variants_net.py:change", "logfc"])) == 0
    found = read()
    assert np.allclose(found.change / np.log(2), found.logfc, equal_nan=True) and found.change.notna().sum() == 30


def test_elements_of_a_named_tuple(job, tmp_path):
    (tmp_path / "variants_net.py").write_text(NET.replace('return {"profile": ', "return Heads(profile=").replace('"counts": ', "counts=").replace("mean(2))}", "mean(2)))") + "\nimport collections\nHeads = collections.namedtuple('Heads', 'profile counts')\n")  # fmt: skip
    assert command_line.main(job) == 0
    number = with_options(job, counts="1", profile="0", out="t.tsv")
    assert command_line.main(number) == 0 and open("s.tsv").read() == open("t.tsv").read()


def test_an_interrupted_job_goes_on(job, monkeypatch, capsys):
    real, calls = command.score, []

    def dying(models, table, *rest, **settings):
        if len(table):
            calls.append(len(table))
            if len(calls) == 3:
                raise KeyboardInterrupt
        return real(models, table, *rest, **settings)

    monkeypatch.setattr(command, "score", dying)
    with pytest.raises(KeyboardInterrupt):
        command_line.main(job)
    assert not __import__("pathlib").Path("s.tsv").exists()
    assert command_line.main(with_options(job, at_once="30")) == 0, "the pieces keep their size"
    assert calls == [7, 7, 7, 7, 7, 7, 7, 3]
    assert_same(read(), expected())
    capsys.readouterr()
    assert command_line.main(job) == 0 and capsys.readouterr().out == "45 variants in s.tsv, as before\n"
    assert len(calls) == 8


def test_other_jobs_are_refused(job, tmp_path, capsys):
    assert command_line.main(job) == 0
    capsys.readouterr()
    for other in ({"weights": "fold1.pt"}, {"width": "48"}, {"scores": "logfc"}, {"indels": "right"}):
        assert command_line.main(with_options(job, **other)) == 2
        assert "another job's" in capsys.readouterr().err
    (tmp_path / "some.vcf").write_text("chr1\t60\t.\tA\tC\n")
    assert command_line.main(job) == 2 and "another job's" in capsys.readouterr().err
    (tmp_path / "other.tsv").write_text("mine")
    assert command_line.main(with_options(job, out="other.tsv")) == 2 and "is not of yuzu variants" in capsys.readouterr().err
    note = tmp_path / "s.tsv.job"
    assert json.loads(note.read_text())["at_once"] == 7
    note.write_text("{")
    assert command_line.main(job) == 2 and "is damaged" in capsys.readouterr().err


def test_a_file_without_variants(job, tmp_path):
    (tmp_path / "some.vcf").write_text("#CHROM\tPOS\tID\tREF\tALT\n")
    assert command_line.main(job) == 0
    assert (tmp_path / "s.tsv").read_text() == "chrom\tpos\tref\talt\tid\tstatus\tlogfc\tjsd\n"


def test_parquet(job, capsys):
    given = with_options(job, out="s.parquet")
    if __import__("importlib").util.find_spec("pyarrow") is None:
        assert command_line.main(given) == 2 and "pip install pyarrow" in capsys.readouterr().err
        return
    assert command_line.main(given) == 0
    assert_same(pandas.read_parquet("s.parquet"), expected())


REFUSED = [
    ({"variants": "missing.vcf"}, "--variants: there is no file missing.vcf"),
    ({"genome": "missing.fa"}, "--genome: there is no file"),
    ({"peaks": "some.vcf"}, "peaks"),
    ({"out": "s.txt"}, "ends in .tsv, .tsv.gz or .parquet"),
    ({"out": "nowhere/s.tsv"}, "--out: there is no folder nowhere"),
    ({"counts": "cuonts"}, "--counts cuonts: the model's output has no such element"),
    ({"counts": "variants_net.py:nothing"}, "--counts: variants_net.py has no nothing"),
    ({"counts": None}, "counts must be given for 'logfc'"),
    ({"scores": "logFC"}, "got 'logFC'"),
    ({"width": "0"}, "--width must be at least 1"),
    ({"share": "-3"}, "share must be an integer of at least 0"),
    ({"weights": "some.vcf"}, "--weights"),
]


@pytest.mark.parametrize("options, message", REFUSED, ids=str)
def test_bad_options_are_named_on_one_line(job, capsys, options, message):
    assert command_line.main(with_options(job, **options)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("yuzu variants: ")


def test_a_bad_option_leaves_nothing_behind(job, tmp_path):
    assert command_line.main(with_options(job, scores="logFC")) == 2
    assert not list(tmp_path.glob("s.tsv*"))
    assert command_line.main(job) == 0
