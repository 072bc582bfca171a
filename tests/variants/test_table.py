"""The table that comes back: rows and their reasons, names of columns, several models; and what is refused before any work."""

import gzip

import numpy as np
import pandas
import pytest
import torch

import yuzu
from tests.genomes import write, write_fasta
from tests.variants.naive import Heads, chromosome, log_counts, outputs, pair, profile
from yuzu import YuzuError, variants
from yuzu._engine.store import making

LENGTH = 40
REPEAT = "GCACACACACACACACT"
TEXT = chromosome(150, 7) + REPEAT + chromosome(150, 8) + "N" + chromosome(200, 9) + "AAAAAAAA" + chromosome(150, 10)
GENOME = {"chr1": TEXT.lower(), "2": chromosome(200, 11), "chrM": chromosome(100, 12)}
AT = TEXT.index(REPEAT)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Heads(strands=1, crop=4).eval()


@pytest.fixture(scope="module")
def numbers():
    torch.manual_seed(4)
    return torch.nn.Sequential(torch.nn.Conv1d(4, 3, 5), torch.nn.AdaptiveMaxPool1d(1), torch.nn.Flatten()).eval()


def score(model, given, length=LENGTH, genome=GENOME, **settings):
    table = given if isinstance(given, pandas.DataFrame) else pandas.DataFrame(given, columns=["chrom", "pos", "ref", "alt"])
    settings = {"func": log_counts if isinstance(model, Heads) else None, "device": "cpu", **settings}
    return variants.score(model, table, genome, length, **settings)


def test_a_nasty_vcf_gives_a_complete_table(tmp_path, model):
    last, n = len(TEXT), TEXT.index("N")
    other = "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4]
    lines = [
        (f"chr1\t251\ta\t{TEXT[250].lower()}\t{other.lower()}", ["ok"]),
        (f"1\t251\tb\t{TEXT[250]}\t{other},<INV>,*,{TEXT[250]}TT", ["ok", "symbolic", "symbolic", "ok"]),
        (f"chr1\t251\tc\t{other}\tG", ["ref_mismatch"]),
        (f"chr1\t251\td\t{TEXT[250]}\t{TEXT[250]}[chr1:9[", ["symbolic"]),
        (f"chr1\t{n + 1}\te\tN\tA", ["not_acgt"]),
        (f"chr1\t{n + 1}\tf\tA\tC", ["ref_mismatch"]),
        (f"chr1\t{n + 11}\tg\t{TEXT[n + 10]}\t{TEXT[n + 10]}A", ["n_in_window"]),
        (f"chr1\t1\th\t{TEXT[0]}\t{other}", ["outside"]),
        (f"chr1\t{last}\ti\t{TEXT[-1]}\tGGG", ["outside"]),
        (f"chr1\t{last + 1}\tj\tA\tC", ["outside"]),
        ("chr1\t0\tk\tA\tC", ["outside"]),
        ("chrUn\t5\tl\tA\tC", ["missing_chromosome"]),
        (f"chr2\t100\tm\t{GENOME['2'][99]}\tACGT", ["ok"]),
        (f"MT\t50\tn\t{GENOME['chrM'][49]}\tACGT", ["ok"]),
        (f"chr1\t251\to\t{TEXT[250]}\t{TEXT[250]}{'A' * LENGTH}", ["too_long"]),
        (f"chr1\t251\tp\t{TEXT[250:280]}\t{TEXT[250]}", ["too_long"]),
        (f"chr1\t251\tq\t{TEXT[250]}\t.", ["no_alternative"]),
        (f"chr1\t251\tr\t{TEXT[250]}\t{TEXT[250]}", ["ok"]),
        (f"chr1\t251\ts\t{TEXT[250:255]}\t{TEXT[250:255][::-1]}", ["ok"]),
        ("", []),
    ]
    text = "##fileformat=VCFv4.3\r\n#CHROM\tPOS\tID\tREF\tALT\r\n" + "".join(f"{line}\r\n" for line, _ in lines)
    table = variants.read(write(tmp_path, gzip.compress(text.encode()), "nasty.vcf.gz"))
    found = score(model, table, genome=write_fasta(tmp_path, GENOME), scores=("delta", "jsd"), profile=profile)
    expected = [(line.split("\t")[2], status) for line, statuses in lines for status in statuses]
    assert list(zip(found.id, found.status, strict=True)) == expected
    scored = found.status.isin(["ok", "n_in_window"])
    assert found[["delta", "jsd"]].notna().all(axis=1).tolist() == scored.tolist()
    assert found.set_index("id").loc["r", ["delta", "jsd"]].tolist() == [0, 0]
    pandas.testing.assert_frame_equal(found[table.columns.drop("status")], table.drop(columns="status"))


SPELLINGS = {
    "a unit less": [(AT + 1 + 2 * k, f"{'CA'}", "") for k in range(7)] + [(AT, "GCA", "G"), (AT + 11, "CACACT", "CACT"), (AT + 2, "AC", "")],
    "a unit more": [(AT + 1 + k, "", "CA" if k % 2 == 0 else "AC") for k in range(15)] + [(AT, "G", "GCA"), (AT + 15, "CT", "CACT")],
    "a letter less": [(TEXT.index("AAAAAAAA") + k, "A", "") for k in range(8)],
    "a substitution": [(250, TEXT[250], "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4])] + [(240, TEXT[240:260], TEXT[240:250] + "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4] + TEXT[251:260])],
}  # fmt: skip


@pytest.mark.parametrize("indels", ["left", "right", "average"])
@pytest.mark.parametrize("kind", SPELLINGS)
def test_all_spellings_score_the_same(model, kind, indels):
    found = score(model, [("chr1", *v) for v in SPELLINGS[kind]], scores=("delta", "jsd"), profile=profile, indels=indels)
    assert (found.status == "ok").all() and found.delta[0] != 0
    assert np.ptp(found.delta) < 1e-7 and np.ptp(found.jsd) < 1e-6
    if indels != "average":
        before, after = outputs(model, pair(TEXT, SPELLINGS[kind][0], LENGTH, indels))[1]
        assert abs(found.delta[0] - float(after - before)) < 1e-6
    assert found.pos.tolist() == [pos for pos, _, _ in SPELLINGS[kind]], "alleles stay as written"


@pytest.mark.parametrize("length", [40, 41])
def test_the_ends_of_a_chromosome(model, length):
    """The first and the last position that have a whole sequence around them; a deletion needs letters beyond."""
    half, last = length // 2, len(TEXT) - (length - length // 2)
    places = [(half - 1, "outside"), (half, "ok"), (last, "ok"), (last + 1, "outside")]
    given = [("chr1", p, TEXT[p], "ACGT"[("ACGT".index(TEXT[p]) + 1) % 4]) for p, _ in places]
    assert score(model, given, length).status.tolist() == [status for _, status in places]
    p = next(p for p in range(last - 3, last) if TEXT[p - 1] != TEXT[p])
    short = [("chr1", p, TEXT[p : p + 5], "")]
    assert score(model, short, length).status.tolist() == ["outside"]
    assert score(model, short, length, indels="right").status.tolist() == ["ok"]


def test_an_opened_genome(tmp_path, numbers):
    import pyfaidx

    path = write_fasta(tmp_path, GENOME)
    given = [("1", 250, TEXT[250], "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4])]
    with pyfaidx.Fasta(str(path)) as opened:
        found = score(numbers, given, genome=opened)
    pandas.testing.assert_frame_equal(found, score(numbers, given))
    with pytest.raises(YuzuError, match="genome: got '5' at chr1:"):
        score(numbers, given, genome={"chr1": TEXT[:240] + "5" + TEXT[241:]})


def test_names_of_columns(model, numbers):
    given = [("chr1", 250, TEXT[250], "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4]), ("chrQ", 4, "A", "C")]
    assert list(score(numbers, given, predictions=True).columns[5:]) == [f"{n}_{k}" for n in ("delta", "ref", "alt") for k in range(3)]
    assert list(score(numbers, given, target=1, predictions=True).columns[2:]) == ["ref", "alt", "status", "delta", "ref_0", "alt_0"]
    several = score([numbers, numbers], given, target=1, predictions=True)
    assert list(several.columns[8:]) == ["ref_0", "ref_0_0", "ref_0_1", "alt_0", "alt_0_0", "alt_0_1"] and (several.ref == score(numbers, given).ref).all()
    assert list(score(numbers, given, target=[2, 1]).columns[5:]) == ["delta_0", "delta_1"]
    assert np.allclose(score(numbers, given, target=1).delta, score(numbers, given).delta_1, atol=1e-7, equal_nan=True)
    several = score([numbers, numbers], given, target=[2, 1])
    assert list(several.columns[5:]) == [f"delta_{k}{m}" for k in (0, 1) for m in ("", "_0", "_1")]
    found = score([model, model], given, scores=("logfc",), counts=log_counts, peaks=np.arange(5.0), predictions=True)
    names = ["logfc", "quantile_ref", "quantile_alt", "active_allele_quantile", "ref_count", "alt_count"]
    assert list(found.columns[5:]) == [name + m for name in names for m in ("", "_0", "_1")]


def test_several_models_are_averaged(numbers):
    torch.manual_seed(9)
    other = torch.nn.Sequential(torch.nn.Conv1d(4, 3, 7), torch.nn.AdaptiveMaxPool1d(1), torch.nn.Flatten()).eval()
    given = [("chr1", p, TEXT[p], "ACGT"[("ACGT".index(TEXT[p]) + 1) % 4]) for p in range(100, 110)]
    found = score([numbers, other], given)
    for m, one in enumerate([numbers, other]):
        assert np.allclose(found[[f"delta_{k}_{m}" for k in range(3)]], score(one, given)[[f"delta_{k}" for k in range(3)]], atol=1e-7)
    assert np.allclose(found.delta_1, (found.delta_1_0 + found.delta_1_1) / 2)


def test_a_precomputation_serves_all_folds(numbers, monkeypatch):
    import copy

    twin, other, tried = copy.deepcopy(numbers), torch.nn.Sequential(torch.nn.Conv1d(4, 3, 9), *numbers[1:]), []
    real = making.tune
    monkeypatch.setattr(making, "tune", lambda *given: (tried.append(1), real(*given))[1])
    given = [("chr1", 250, TEXT[250], "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4])]
    score([copy.deepcopy(numbers), twin, other], given)
    assert len(tried) == 2, "one architecture, one precomputation"
    made = yuzu.precompute(numbers, LENGTH, device="cpu")
    expected = score(numbers, given)
    for precomputation in (made, [made, made]):
        assert np.allclose(score([numbers, twin], given, precomputation=precomputation).delta_0, expected.delta_0)
    with pytest.raises(yuzu.PrecomputationError, match="sequences of length 40"):
        score(numbers, given, 30, precomputation=made)
    with pytest.raises(YuzuError, match="one for each of 2 models, got 3"):
        score([numbers, twin], given, precomputation=[made] * 3)


def test_quantiles_among_peaks(model):
    given = [("chr1", p, TEXT[p : p + 2], "") for p in range(60, 90)]
    peaks = np.random.default_rng(0).normal(0.3, 0.3, 200)
    settings = {"scores": ("logfc", "jsd", "logfc_x_jsd_x_active_allele_quantile"), "counts": log_counts, "profile": profile}
    found = score(model, given, peaks=pandas.DataFrame({"log_counts": peaks, "x": 1.0}), predictions=True, **settings)
    below = {side: [(peaks < value).mean() for value in found[f"{side}_count"]] for side in ("ref", "alt")}
    assert np.allclose(found.quantile_ref, below["ref"]) and np.allclose(found.quantile_alt, below["alt"])
    assert np.allclose(found.active_allele_quantile, np.maximum(below["ref"], below["alt"])) and found.quantile_ref.std() > 0
    assert np.allclose(found.logfc_x_jsd_x_active_allele_quantile, found.logfc * found.jsd * found.active_allele_quantile)


def test_a_users_own_score(model, numbers):
    def ratio(before, after):
        return (after / before).abs()

    def both(before, after):
        return torch.cat([before[1], after[1]], dim=1)

    given = [("chr1", p, TEXT[p : p + 1 + p % 2], "GA") for p in range(200, 212)]
    found = score(numbers, given, scores=(ratio, "delta"), target=slice(0, 2), predictions=True)
    assert np.allclose(found.ratio_1, np.abs(found.alt_1 / found.ref_1), rtol=1e-5)
    found = score(model, given, scores=[both], func=None, counts=log_counts, predictions=True)
    assert np.allclose(found[["both_0", "both_1"]], found[["ref_count", "alt_count"]])


def test_the_users_frame_is_kept(numbers):
    given = [("chr1", 250, TEXT[250], "ACGT"[("ACGT".index(TEXT[250]) + 1) % 4]), (1, 251.0, TEXT[251].lower(), "-"), ("chr1", 9, "A", "C")]
    table = pandas.DataFrame(given, columns=["chrom", "pos", "ref", "alt"], index=["x", "x", "y"])
    table["p"], table["status"] = [0.1, 0.2, 0.3], ["ok", "ok", "filtered"]
    before = table.copy()
    found = score(numbers, table, target=0)
    pandas.testing.assert_frame_equal(table, before)
    assert found.index.tolist() == ["x", "x", "y"] and found.p.tolist() == [0.1, 0.2, 0.3]
    assert found.status.tolist() == ["ok", "ok", "filtered"] and found.delta.isna().tolist() == [False, False, True]
    again = score(numbers, found, target=0)
    pandas.testing.assert_frame_equal(again, found)


def test_a_bar_counts_variants(numbers, capsys):
    given = [("chr1", p, TEXT[p], "ACGT"[("ACGT".index(TEXT[p]) + 1) % 4]) for p in range(100, 103)]
    score(numbers, given, verbose=True)
    assert "3/3" in capsys.readouterr().err
    score(numbers, given)
    assert "variant" not in capsys.readouterr().err


def test_empty_tables_have_all_columns(model, numbers):
    assert list(score(numbers, []).columns[5:]) == ["delta_0", "delta_1", "delta_2"]
    assert list(score(numbers, [], args=(torch.zeros(0, 3),)).columns[5:]) == ["delta"]
    unscored = score(model, [("chr9", 1, "A", "C")], scores=("jsd",), profile=profile)
    assert unscored.status.tolist() == ["missing_chromosome"] and unscored.jsd.isna().all()


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    score(model, [("chr1", 250, TEXT[250:252], "C")])
    assert model.training and all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(state, torch.random.get_rng_state())
    model.eval()


def bad(**columns):
    return pandas.DataFrame({"chrom": ["chr1"] * 2, "pos": [5, 6], "ref": ["A", "C"], "alt": ["C", "A"], **columns})


REFUSED = {
    "no frame": ({"table": [1]}, "table: got list, want a pandas.DataFrame"),
    "no column": ({"table": bad().drop(columns="alt")}, "'alt' is missing"),
    "text as a position": ({"table": bad(pos=["5", "6"])}, "got '5' in column 'pos' of row 0, want an integer"),
    "half a position": ({"table": bad(pos=[5, 6.5])}, "got 6.5 in column 'pos' of row 1"),
    "no allele": ({"table": bad(alt=["C", None])}, "got .* in column 'alt' of row 1, want letters"),
    "no chromosome": ({"table": bad(chrom=["chr1", ""])}, "got '' in column 'chrom' of row 1"),
    "an unknown score": ({"scores": ("delta", "logFC")}, "got 'logFC'"),
    "a product of deltas": ({"scores": ("delta_x_jsd",)}, "got 'delta_x_jsd'"),
    "a score twice": ({"scores": ("delta", "delta")}, "different names"),
    "no scores": ({"scores": ()}, r"scores must be a list .* got \(\)"),
    "no counts": ({"scores": ("abs_logfc_x_jsd",), "profile": profile}, "counts must be given for 'abs_logfc_x_jsd'"),
    "no profile": ({"scores": ("jsd",)}, "profile must be given for 'jsd'"),
    "no peaks": ({"scores": ("active_allele_quantile",), "counts": log_counts}, "peaks must be given"),
    "peaks alone": ({"peaks": [1.0]}, "counts must be given with peaks"),
    "peaks of text": ({"peaks": ["a"], "counts": log_counts}, "peaks: got <U1"),
    "peaks with NaN": ({"peaks": [1.0, np.nan], "counts": log_counts}, "peaks: got nan in row 1"),
    "a frame of peaks": ({"peaks": pandas.DataFrame({"a": [1.0], "b": [2.0]}), "counts": log_counts}, "named 'log_counts'"),
    "another output as counts": ({"scores": ("logfc",), "counts": profile}, r"counts must return log counts of shape \(n,\)"),
    "another output as profile": ({"scores": ("jsd",), "profile": lambda y: y[1][:, 0]}, "profile must return logits"),
    "a score of another shape": ({"scores": [lambda a, b: a[0].sum()], "func": None}, r"score must return shape \(n,\)"),
    "a name as counts": ({"counts": "log_counts"}, "counts must be a callable"),
    "a function with a column's name": ({"scores": [type("f", (), {"__call__": None, "__name__": "ref"})()]}, "got 'ref'"),
    "indels": ({"indels": "both"}, "indels must be one of 'left', 'right', 'average'"),
    "share": ({"share": -1}, "share must be an integer of at least 0"),
    "seq_len": ({"length": 0}, "seq_len must be an integer of at least 1"),
    "a length that the model cannot read": ({"length": 3, "model": torch.nn.Conv1d(4, 1, 5)}, "the model cannot run"),
    "strands": ({"reverse_complement": "yes"}, "reverse_complement must be True or False"),
    "a profile on both strands": ({"reverse_complement": True, "func": None}, "cannot tell which of their axes"),
    "letters": ({"alphabet": "ACGU"}, "alphabet: got 'ACGU'"),
    "rows of args": ({"args": (torch.zeros(3, 1),)}, "must have 2 rows"),
    "a target": ({"func": log_counts, "target": 4}, "target=4 does not exist"),
    "a genome": ({"genome": 3}, "genome: got int"),
    "no model": ({"model": []}, "model must be"),
    "a device": ({"device": "gpu"}, "device must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_named(model, case):
    given, message = REFUSED[case]
    given = {"model": model, "given": bad(), **given}
    table = given.pop("table", None)
    with pytest.raises(ValueError, match=message):
        if table is not None:
            variants.score(model, table, GENOME, LENGTH, func=log_counts, device="cpu")
        else:
            score(**given)
