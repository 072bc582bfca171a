"""Tensors derived from weights are kept once, follow the weights, and do not pile up."""

import pytest
import torch
from torch import nn

import yuzu
from tests.oracle import assert_close, assert_right
from tests.small_layers import Model, chain, flattened
from tests.small_models import sequences
from yuzu._engine.store.in_use import PLANS_KEPT

# what the check of precompute finds wrong would run naively, and be right all the same
pytestmark = pytest.mark.filterwarnings("error::yuzu.YuzuWarning")

L = 40


@pytest.mark.parametrize("conv", ["windows", "banded", "fold"])
def test_calls_leave_nothing_behind(conv, device):
    """Index tables are kept for the next call, but never made again for every call."""
    crop = nn.Sequential(nn.Conv1d(4, 5, 9), nn.ReLU(), nn.Conv1d(5, 2, 5, dilation=3))
    model = Model(lambda x, body: body(x)[:, :, 5:-4], crop).double()
    X = sequences(2, L)
    precomputation = yuzu.precompute(model, L, conv=conv, device=device)
    plan = precomputation.bind(model, L, 4, (), torch.device(device)).plan

    def kept():
        windows = [w for found in plan.remembered.values() for w in found if w is not None]
        entries = [value for w in windows for value in w._cache.values()]
        return len(entries), sum(t.nbytes for t in torch.utils._pytree.tree_leaves(entries) if isinstance(t, torch.Tensor))

    counts = []
    for _ in range(4):
        found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device=device)
        counts.append(kept())
    assert counts[1:] == counts[1:2] * 3
    assert_right(found, model, X, output="delta", device=device)


def test_what_is_made_from_weights_is_kept_once(monkeypatch):
    model = chain(nn.ReLU(), nn.Conv1d(6, 16, 5), nn.ReLU(), tail=False)
    X = sequences(1, 200)
    precomputation = yuzu.precompute(model, 200)
    yuzu.yuzu_ism(model, X, precomputation)
    bound = precomputation.bind(model, 200, 4, (), torch.device("cpu"))
    before = bound.derived.nbytes
    for start in (0, 3, 50, 190):
        yuzu.yuzu_ism(model, X, precomputation, start=start, end=start + 7)
    assert bound.derived.nbytes == before, "windows of other widths need no other weights"


def one_storage(offset: int) -> nn.Module:
    """Layers whose weights are pieces of one tensor, as flattened parameters are."""
    flat = torch.randn(offset + 12 * 4 * 5 + 12 * 12 * 9)
    first, second = nn.Conv1d(4, 12, 5, padding=2), nn.Conv1d(12, 12, 9, padding=4)
    first.weight = nn.Parameter(flat[offset : offset + 240].view(12, 4, 5))
    second.weight = nn.Parameter(flat[offset + 240 :].view(12, 12, 9))
    return nn.Sequential(first, nn.ReLU(), second).eval()


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("change", ["a swap", "one number", "not a number"])
def test_changed_weights_that_lie_at_odd_places(offset, change):
    model = one_storage(offset)
    X = sequences(1, L)
    precomputation = yuzu.precompute(model, L, conv="banded", device="cpu")
    before = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    weight = model[2].weight.data
    assert weight.storage_offset() == offset + 240, "else the test is of nothing"
    if change == "a swap":
        weight[:2] = weight[:2].flip(0).clone()
    else:
        weight[3, 4, 5] = 7.0 if change == "one number" else float("nan")
    found = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    if change == "not a number":
        assert torch.as_tensor(found).isnan().any() and not torch.as_tensor(before).isnan().any()
    else:
        assert_right(found, model, X, output="delta", device="cpu")


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_kept_is_not_the_weight_itself(precision, groups, kernel):
    """Whoever swaps a weight's tensor for an equal one may write over the old one."""
    model = nn.Sequential(nn.Conv1d(4, 16, 7, padding=3), nn.ReLU(), nn.Conv1d(16, 32, kernel, groups=groups)).eval()
    X = sequences(1, L)
    precomputation = yuzu.precompute(model, L, precision=precision, device="cpu")
    before = yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu")
    old = model[2].weight.data
    model[2].weight.data = old.clone()
    old.mul_(-3)
    assert_close(yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu"), before, 1e-6)


def test_the_first_call_finds_weights_laid_out(device):
    model, X = flattened(), sequences(1, L)
    made = yuzu.precompute(model, L, device=device)
    derived = made.bind(model, L, 4, (), torch.device(device)).derived
    before = {key: id(value) for key, (_, value) in derived._kept.items()}
    assert before
    found = yuzu.yuzu_ism(model, X, made, output="delta", device=device)
    after = {key: id(value) for key, (_, value) in derived._kept.items()}
    assert all(after[key] == before[key] for key in before), "nothing is made again"
    assert_right(found, model, X, output="delta", device=device)
    with torch.no_grad():
        model[3].weight.mul_(-2.5)
        model[0].weight.add_(0.1)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device=device), model, X, output="delta", device=device)


def test_plans_with_nodes_run_naively_do_not_pile_up():
    model = nn.Sequential(*(nn.Conv1d(4, 4, 3, padding=1) for _ in range(PLANS_KEPT + 3))).eval()
    bound = yuzu.precompute(model, L, device="cpu")._used.values()[0][0].used
    convolutions = [node.index for node in bound.plan.graph.nodes if node.op == "aten.conv1d"]
    for node in convolutions:
        assert bound.plan_without([node], "its value is infinite").naive.keys() == {node}
    assert bound._naive_plans.keys() == [(node,) for node in convolutions[-PLANS_KEPT:]]
