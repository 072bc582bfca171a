"""Scores of variants against brute force in float64: sequences cut from edited chromosomes, each model run alone."""

import copy
import random
import warnings

import numpy as np
import pandas
import pytest
import torch

from tests.laws.random_models import random_model, tensors_of
from tests.variants.naive import (
    Heads,
    chromosome,
    distance,
    log_counts,
    one_hot,
    outputs,
    pair,
    profile,
    spelling,
    turned,
)
from yuzu import variants

LENGTH = 60
TEXT = chromosome(900, 1) + "ACACACACACAC" * 4 + "TTTTTTTTTT" + chromosome(900, 2)


def letters(rng, count):
    return "".join(rng.choice("ACGT") for _ in range(count))


def draw(n, kinds, seed=0, low=120, high=None):
    """Variants ``(pos, ref, alt)`` of some kinds."""
    rng, found = random.Random(seed), []
    while len(found) < n:
        pos, size = rng.randrange(low, high or len(TEXT) - 120), rng.randint(2, 5)
        here, some = TEXT[pos], TEXT[pos : pos + size]
        variant = {
            "snv": (pos, here, letters(rng, 1)),
            "mnv": (pos, some, letters(rng, size)),
            "insertion": (pos, here, here + letters(rng, size)),
            "deletion": (pos, some, here),
            "bare": (pos, "", letters(rng, size)),
            "mixed": (pos, some, letters(rng, rng.choice([1, 4, 9]))),
        }[kinds[len(found) % len(kinds)]]
        if variant[1] != variant[2]:
            found.append(variant)
    return found


KINDS = ("snv", "mnv", "insertion", "deletion", "bare", "mixed")


def table_of(given, name="chr1"):
    return pandas.DataFrame([(name, *v) for v in given], columns=["chrom", "pos", "ref", "alt"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Heads().eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("both", [False, True])
def test_every_score_of_every_kind(model, side, both, device):
    given = draw(42, KINDS, seed=5)
    names = ("delta", "max_abs", "logfc", "jsd", "abs_logfc_x_jsd")
    found = variants.score(
        model, table_of(given), {"chr1": TEXT}, LENGTH, scores=names, func=lambda y: y[1], counts=log_counts,
        profile=profile, indels=side, reverse_complement=both, predictions=True, device=device,
    )  # fmt: skip
    assert (found.status == "ok").all() and found[list(names)].notna().all(axis=None)
    for (_, row), variant in zip(found.iterrows(), given, strict=True):
        texts = pair(TEXT, variant, LENGTH, side)
        shapes, counts = outputs(model, texts)
        if both:
            other, others = outputs(model, [turned(text) for text in texts])
            shapes, counts = (shapes + other.flip(1, 2)) / 2, (counts + others) / 2
        before, after = counts[:, 0].tolist()
        jsd = distance(*shapes, *spelling(TEXT, *variant)[1:], side)
        logfc = (after - before) / np.log(2)
        assert np.allclose([row.ref_count, row.alt_count], [before, after], atol=1e-6)
        assert np.allclose([row.delta, row.max_abs], [after - before, abs(after - before)], atol=1e-6)
        assert np.allclose([row.logfc, row.jsd], [logfc, jsd], atol=1e-6)
        assert np.isclose(row.abs_logfc_x_jsd, abs(logfc) * jsd, atol=1e-6)


def test_scores_are_the_formulas_of_the_predictions_in_the_table(model):
    found = variants.score(
        model, table_of(draw(20, KINDS)), {"chr1": TEXT}, LENGTH, scores=("logfc", "delta"), counts=log_counts,
        func=log_counts, predictions=True, device="cpu",
    )  # fmt: skip
    assert np.allclose(found.logfc, np.log2(np.exp(found.alt_count - found.ref_count)), atol=1e-6, rtol=0)
    assert np.allclose(found.delta, found.alt_count - found.ref_count, atol=1e-6, rtol=0)


def test_the_average_of_both_flanks(model):
    given = table_of(draw(18, KINDS, seed=2))
    settings = {"scores": ("jsd", "logfc"), "counts": log_counts, "profile": profile, "device": "cpu"}
    left, right, average = (
        variants.score(model, given, {"chr1": TEXT}, LENGTH, indels=side, **settings) for side in ("left", "right", "average")
    )
    for name in ("jsd", "logfc"):
        assert np.allclose(average[name], (left[name] + right[name]) / 2, atol=1e-9)
    even = given.ref.str.len() == given.alt.str.len()
    assert (left.jsd != right.jsd)[~even].any() and np.allclose(left.jsd[even], right.jsd[even], atol=1e-7)


@pytest.mark.parametrize("seed", [0, 2, 8, 12, 16, 18, 22])
def test_random_architectures(seed):
    """In float32, by its own yardstick: 1e-5, or the error of naive ISM in float32 where that is larger."""
    drawn = random_model(seed)
    length = drawn.X.shape[2]
    kinds = ("snv", "insertion", "mnv", "snv") if length > 12 else ("snv",)
    given = draw(16, kinds, seed)
    args = tuple(a[:1].expand(16, *a.shape[1:]) for a in drawn.args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = variants.score(drawn.model, table_of(given), {"chr1": TEXT}, length, args=args or None, device="cpu")
    columns = [name for name in found.columns if name.startswith("delta")]
    got = torch.tensor(found[columns].to_numpy())
    truth, noise = [], []
    for variant, row in zip(given, range(16), strict=True):
        texts, extra = pair(TEXT, variant, length), tuple(a[[row, row]] for a in args)
        exact = torch.cat([t.reshape(2, -1) for t in tensors_of(_run(drawn.model, texts, extra, torch.float64))], dim=1)
        rough = torch.cat([t.reshape(2, -1) for t in tensors_of(_run(drawn.model, texts, extra, torch.float32))], dim=1)
        truth.append(exact[1] - exact[0])
        noise.append(rough[1] - rough[0] - truth[-1])
    truth, noise = torch.stack(truth), torch.stack(noise)
    assert got.shape == truth.shape
    assert (got - truth).norm() <= max(1e-5 * truth.norm(), 2 * noise.norm(), 1e-7), drawn.names


def _run(model, texts, args, dtype):
    twin = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        y = twin(one_hot(texts).to(dtype), *(a.to(dtype) for a in args))
    return [t.double() for t in tensors_of(y)]


def test_rows_of_other_inputs(device):
    """A model with another input, a row for each variant, also where two variants are at one place."""

    class Cells(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = torch.nn.Conv1d(4, 5, 5), torch.nn.Linear(8, 2)

        def forward(self, x, cell):
            return self.head(torch.cat([torch.relu(self.conv(x)).mean(2), cell], 1).square())

    torch.manual_seed(0)
    model, given = Cells().eval(), draw(14, KINDS, seed=8)
    given += [given[0], (given[0][0], given[0][1], "ACGT"[("ACGT".index(given[0][1]) + 1) % 4])]
    cell = torch.rand(16, 3)
    found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, args=(cell,), share=20, device=device)
    for i, variant in enumerate(given):
        y = outputs(model, pair(TEXT, variant, LENGTH), args=(cell[[i, i]],))
        assert np.allclose(found.loc[i, ["delta_0", "delta_1"]].astype(float), y[1] - y[0], atol=1e-6)


def test_a_model_that_branches_on_its_other_input():
    """Each branch has a graph of its own, and each variant the one that its row takes."""

    class Branches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (torch.nn.Conv1d(4, 3, k) for k in (5, 9))

        def forward(self, x, cell):
            return (torch.relu(self.one(x)) if float(cell.mean()) > 1 else torch.tanh(self.other(x))).mean(2)

    torch.manual_seed(0)
    model, given = Branches().eval(), draw(12, ("snv", "deletion", "mnv"), seed=8)
    cell = torch.tensor([[0.2], [3.0], [0.5], [4.0]]).repeat(3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, args=(cell,), device="cpu")
    for i, variant in enumerate(given):
        y = outputs(model, pair(TEXT, variant, LENGTH), args=(cell[[i, i]],))
        assert np.allclose(found.loc[i, [f"delta_{k}" for k in range(3)]].astype(float), y[1] - y[0], atol=1e-6)


def test_a_model_whose_rows_depend_on_their_batch():
    class Mixes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 3, 5)

        def forward(self, x):
            y = self.conv(x).amax(2)
            return y - y.mean(0) * (len(x) > 1)

    torch.manual_seed(0)
    model, given = Mixes().eval(), draw(8, KINDS, seed=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, device="cpu")
    for i, variant in enumerate(given):
        y = outputs(model, pair(TEXT, variant, LENGTH))
        assert np.allclose(found.loc[i, [f"delta_{k}" for k in range(3)]].astype(float), y[1] - y[0], atol=1e-6)


def test_another_order_of_letters(model):
    swapped = torch.nn.Sequential(_Reordered(model))
    settings = {"func": log_counts, "device": "cpu", "reverse_complement": True}
    given = table_of(draw(12, KINDS, seed=4))
    usual = variants.score(model, given, {"chr1": TEXT}, LENGTH, **settings)
    found = variants.score(swapped, given, {"chr1": TEXT}, LENGTH, alphabet="AGCT", **settings)
    assert np.allclose(found.delta, usual.delta, atol=1e-6)


class _Reordered(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x[:, [0, 2, 1, 3]])


@pytest.mark.parametrize("share", [0, 12, 30, 1000])
def test_shared_references_change_nothing_for_a_model_blind_to_place(share, device):
    class Blind(torch.nn.Module):
        """A sum over places, so that a variant's part depends on its neighbours alone."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 7, 5)

        def forward(self, x):
            return torch.relu(self.conv(x)).sum(2)[:, :3]

    torch.manual_seed(1)
    model, given = Blind().eval(), draw(60, ("snv", "mnv", "insertion", "deletion"), seed=9, low=300, high=460)
    given += [(25, TEXT[25], "A"), (31, TEXT[31], "C"), (32, TEXT[32], "G"), (len(TEXT) - 31, TEXT[-31], "T")]
    alone = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, device=device)
    found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, share=share, device=device)
    assert found.status.tolist() == alone.status.tolist() and found.status[60] == "outside"
    columns = [f"delta_{k}" for k in range(3)]
    assert np.allclose(found[columns], alone[columns], atol=2e-6, equal_nan=True)


def test_sharing_saves_reference_passes(model, monkeypatch):
    from yuzu._engine.run.run import Run

    rows = []
    real = Run.set_reference
    monkeypatch.setattr(Run, "set_reference", lambda run, X, *rest, **more: (rows.append(len(X)), real(run, X, *rest, **more))[1])
    given = table_of([(p, TEXT[p], a) for p in range(300, 330) for a in "ACGT" if a != TEXT[p]])

    def passes(**settings):
        variants.score(model, given, {"chr1": TEXT}, LENGTH, func=log_counts, device="cpu", **settings)  # makes a plan
        rows.clear()
        variants.score(model, given, {"chr1": TEXT}, LENGTH, func=log_counts, device="cpu", **settings)
        return sum(rows)

    assert passes() == 30 and passes(share=9) == 3 and passes(share=30) == 1


def test_a_model_that_runs_naively_gives_the_same():
    class Branches(torch.nn.Module):
        """No graph can be made of it."""

        def __init__(self):
            super().__init__()
            self.net = Heads()

        def forward(self, x):
            counts = self.net(x)[1]
            return counts if float(x[0, 0, 0]) < 2 and np.array(x).shape[0] else -counts

    torch.manual_seed(3)
    model, given = Branches().eval(), draw(30, KINDS, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, share=20, batch_size=7, device="cpu")
    for delta, variant in zip(found.delta, given, strict=True):
        before, after = outputs(model.net, pair(TEXT, variant, LENGTH))[1]
        assert abs(delta - float(after - before)) < 1e-6 or len(variant[1]) == len(variant[2])


def test_mutants_that_become_infinite():
    """The score of a variant whose own value is infinite is infinite, as by brute force."""

    class Log(torch.nn.Module):
        def forward(self, x):
            return torch.log(x[:, :1, 28:34].sum(2))

    text = TEXT[:300] + "C" * 30 + "A" + "C" * 29 + TEXT[360:]
    given = [(330, "A", "C"), (329, "C", "A"), (331, "C", "G")]
    found = variants.score(Log(), table_of(given), {"chr1": text}, LENGTH, device="cpu")
    assert found.delta.tolist()[0] == -np.inf and np.allclose(found.delta[1:], [np.log(2), 0])


def test_float64_models(model):
    given = draw(10, KINDS)
    twin = copy.deepcopy(model).double()
    found = variants.score(twin, table_of(given), {"chr1": TEXT}, LENGTH, func=log_counts, device="cpu")
    for delta, variant in zip(found.delta, given, strict=True):
        before, after = outputs(model, pair(TEXT, variant, LENGTH))[1]
        assert abs(delta - float(after - before)) < 1e-12


def test_small_effects_keep_their_digits():
    """The difference is carried, not taken from two predictions: beside 10, float32 knows numbers to 1e-6."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(4, 6, 7), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(6, 1)]
    model = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[4].weight *= 1e-5
        model[4].bias += 10
    given = draw(12, ("snv",), seed=3)
    found = variants.score(model, table_of(given), {"chr1": TEXT}, LENGTH, device="cpu")
    truth = [float(torch.diff(outputs(model, pair(TEXT, v, LENGTH))[:, 0])) for v in given]
    assert np.linalg.norm(found.delta - truth) < 1e-5 * np.linalg.norm(truth)
