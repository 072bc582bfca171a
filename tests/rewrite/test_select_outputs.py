"""Only the outputs that are asked for are computed."""

import copy

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import FLOAT64, assert_close, oracle
from tests.small_layers import Model
from tests.small_models import sequences
from yuzu._engine.store.in_use import PLANS_KEPT

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


def heads():
    body = [nn.Conv1d(4, 6, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)]
    yield "linear", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7), nn.Sigmoid())
    yield "without a bias", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7, bias=False))
    yield "tracks", nn.Sequential(*body, nn.Conv1d(6, 7, 3), nn.Softplus(), nn.Unflatten(2, (-1, 1)))
    yield "grouped", nn.Sequential(*body, nn.Conv1d(6, 6, 3, groups=3))
    yield "softmax", nn.Sequential(*body, nn.Flatten(), nn.Linear(6 * (L // 2), 7), nn.Softmax(1))


@pytest.mark.parametrize("target", [0, -2, [4, 1], slice(1, 6, 2)])
@pytest.mark.parametrize("name, model", list(heads()))
def test_outputs_that_nobody_asked_for(name, model, target):
    model = copy.deepcopy(model).double().eval()
    X = sequences(2, L)
    precomputation = yuzu.precompute(model, L)
    for output in ("delta", "prediction", "l2"):
        found = yuzu.yuzu_ism(model, X, precomputation, output=output, target=target)
        assert_close(found, oracle(model, X, target=target)[output], FLOAT64, FLOAT64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", target=target)
    assert_close(found, oracle(model, X, target=target)["delta"], FLOAT64, FLOAT64)
    whole = yuzu.yuzu_ism(model, X, precomputation, output="delta")
    assert_close(whole, oracle(model, X)["delta"], FLOAT64, FLOAT64)


def test_only_the_chosen_rows_are_multiplied():
    model = nn.Sequential(nn.Conv1d(4, 6, 5), nn.Flatten(), nn.Linear(6 * (L - 4), 50), nn.Tanh()).eval()
    bound = yuzu.precompute(model, L).bind(model, L, 4, (), torch.device("cpu"))
    narrowed = bound.for_outputs([3, -1])
    shapes = [node.shape for node in narrowed.plan.graph.nodes]
    assert (2, 6 * (L - 4)) in shapes and (50, 6 * (L - 4)) not in shapes
    assert narrowed.plan.graph.nodes[-1].shape == (None, 2)
    assert bound.for_outputs(slice(None)) is None, "all of them"
    assert bound.for_outputs([50]) is None, "there is none"


def test_plans_of_some_outputs_are_kept_in_bounds():
    """The oldest makes room, and is made anew when it is asked for again."""
    outputs = PLANS_KEPT + 3
    model = nn.Sequential(nn.Conv1d(4, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * (L - 4), outputs)).double().eval()
    X = sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    bound = made.bind(model, L, 4, (), torch.device("cpu"))
    truth = oracle(model, X)["delta"]
    for target in [*range(outputs), 0]:
        found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
        assert_close(found, truth[..., target], FLOAT64, FLOAT64)
        assert len(bound._of_outputs) <= PLANS_KEPT
    assert len(bound._of_outputs) == PLANS_KEPT and bound._of_outputs.keys()[-1] == (0,)


def test_a_weight_that_is_used_twice_is_not_narrowed():
    def tied(x, conv, linear):
        y = conv(x).mean(2)
        return linear(linear(y).relu())

    model = Model(tied, nn.Conv1d(4, 6, 5), nn.Linear(6, 6)).double()
    X = sequences(2, L)
    found = yuzu.yuzu_ism(model, X, output="delta", target=2)
    assert_close(found, oracle(model, X, target=2)["delta"], FLOAT64, FLOAT64)


def test_plans_for_some_outputs_remember_windows_within_the_bounds_of_one(monkeypatch):
    model, X = nn.Sequential(nn.Conv1d(4, 6, 9), nn.Flatten(), nn.Linear(6 * (L - 8), 30)).eval(), sequences(1, L)
    made = yuzu.precompute(model, L, device="cpu")
    bound = made._used.values()[0][0].used
    remembered = bound.plan.remembered
    for target in range(12):
        found = yuzu.yuzu_ism(model, X, made, output="delta", target=target, device="cpu")
        assert_close(found, oracle(model, X, target=target)["delta"], 1e-5, 1e-5)
    plans = [other.plan for (other,) in bound._of_outputs.values()]
    assert len(plans) == 12 and all(plan.remembered is remembered for plan in plans)
    assert len({mine for mine, _ in remembered.keys()}) > 1, "each plan finds its own"
    most = remembered.nbytes // 2
    monkeypatch.setattr(remembered, "_most_bytes", most)
    yuzu.yuzu_ism(model, X, made, output="delta", target=20, device="cpu")
    assert 0 < remembered.nbytes <= most
