"""A forward that decides by values which no sequence reaches: it is captured, and other values are never run by its plan."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import yuzu
from tests.oracle import assert_right, assert_same
from tests.small_models import randomized, sequences
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture
from yuzu.errors import PrecomputationError, YuzuError, YuzuWarning
from yuzu.product import apply_product

LENGTH = 16
CPU = torch.device("cpu")


class Branching(nn.Module):
    """Two ways to compute, numbers in buffers and in an attribute, and a forward of one's own."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.other, self.use = nn.Conv1d(4, 5, 3, padding=1), nn.Conv1d(4, 5, 5, padding=2), use
        self.third = nn.Conv1d(4, 5, 1)
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("keep", torch.tensor([True, False, True, True, False]))
        self.register_buffer("scale", torch.tensor(2.0))
        self.table = torch.tensor([1.0, 2.0])

    def forward(self, x: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        return self.use(self, x, *args)


def built(use: Callable[..., Any]) -> nn.Module:
    model = randomized(Branching(use)).eval()
    model.scale.fill_(2.0)
    return model


def any_negative(m, x, i):
    y = torch.relu(m.conv(x))
    return m.other(x) if torch.any(i < 0) else y * i[:, None, None]


def asserted(m, x, i):
    assert torch.all(i >= -5), "unknown organism"
    return m.conv(x) * i[:, None, None]


def asserted_by_torch(m, x, i):
    torch._assert(torch.all(i >= -5), "unknown organism")
    return m.conv(x) * i[:, None, None]


def in_a_range(m, x, i):
    if i.min() < -5 or i.max() > 5:
        raise ValueError("unknown organism")
    return m.conv(x) + i[:, None, None]


def head_by_item(m, x, i):
    return {1: m.conv, 0: m.other, -1: m.third}[i[0].item()](x).mean(2)


def head_by_text(m, x, i):
    return {"1": m.conv, "0": m.other, "-1": m.third}[f"{i[0]}"](x).mean(2)


def head_by_index(m, x, i):
    return [m.conv, m.other, m.third][i[0]](x).mean(2)


def head_by_list(m, x, i):
    return (m.conv if i.tolist()[0] == 1 else m.other)(x)


def head_by_numpy(m, x, i):
    return (m.conv if i.cpu().detach().numpy()[0] == 1 else m.other)(x)


def equal(m, x, i):
    return (m.conv if torch.equal(i, torch.ones_like(i)) else m.other)(x)


def close(m, x, i):
    return (m.conv if torch.allclose(i, torch.ones_like(i)) else m.other)(x)


def contained(m, x, i):
    return (m.conv if 1 in i else m.other)(x)


def number(m, x, i):
    return m.conv(x) * float(i[0] + 2)


def looped(m, x, i):
    y = m.conv(x)
    for _ in range(int(i[0]) + 2):
        y = torch.relu(y) + 0.1
    return y


def cropped(m, x, i):
    return m.conv(x)[:, :, : int(i.max()) + 4].mean(2)


BY_ARGS = [any_negative, asserted, asserted_by_torch, in_a_range, head_by_item, head_by_text, head_by_index, head_by_list, head_by_numpy, equal, close,
           contained, number, looped, cropped]  # fmt: skip


def by_flag(m, x):
    return (m.conv if m.flag else m.other)(x)


def by_flag_changed(m, x):
    flag = m.flag.clone().logical_not_()
    return (m.other if flag else m.conv)(x)


def by_buffers_loop(m, x):
    for channel in m.keep:
        if channel:
            x = x * 2
    return m.conv(x)


def by_counter(m, x):
    left, y = m.count.clone(), m.conv(x)
    while left > 0:
        y, left = torch.relu(y) + 0.1, left - 1
    return y


def by_counter_in_place(m, x):
    left, y = m.count.clone(), m.conv(x)
    while left > 0:
        y = torch.relu(y) + 0.1
        left -= 1
    return y


def by_range(m, x):
    y = m.conv(x)
    for _ in range(m.count):
        y = torch.relu(y) + 0.1
    return y


def by_scale(m, x):
    return (m.conv if m.scale.item() > 1 else m.other)(x)


def by_parameter(m, x):
    return (m.conv if m.conv.weight.norm() > 0 else m.other)(x)


def by_attribute(m, x):
    return (m.conv if m.table.sum() > 0 else m.other)(x)


def by_mask(m, x):
    return m.conv(x)[:, m.keep]


def by_mask_of_positions(m, x):
    place = torch.arange(LENGTH)
    return m.conv(x)[:, :, (place > m.count) & (place < 12)]


def by_nonzero(m, x):
    return m.conv(x)[:, m.keep.nonzero().squeeze(1)]


def by_slice(m, x):
    return m.conv(x)[:, :, m.count.item() :]


BY_MODEL = [by_flag, by_flag_changed, by_buffers_loop, by_counter, by_counter_in_place, by_range, by_scale, by_parameter, by_attribute, by_mask,
            by_mask_of_positions, by_nonzero, by_slice]  # fmt: skip


def nothing_is_naive(model: nn.Module, made: yuzu.Precomputation) -> None:
    assert made.decisions.naive_model is None and not made.decisions.naive
    assert not any(layer.why_naive for layer in made.layers), made.summary()


@pytest.mark.parametrize("use", BY_ARGS)
def test_values_in_args(use: Callable[..., Any]) -> None:
    """Rows of one call with other values, which a plan for the first of them would get wrong."""
    model, X = built(use), sequences(4, LENGTH)
    index = torch.tensor([1, 0, 1, -1] if use is not contained else [1, 0, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, args=(index,), device="cpu")
        nothing_is_naive(model, made)
        found = yuzu.yuzu_ism(model, X, made, args=(index,), output="delta", device="cpu")
        assert_right(found, model, X, args=(index,), output="delta")
        again = yuzu.yuzu_ism(model, X.numpy(), made, args=(index.flip(0),), device="cpu")
    assert isinstance(again, np.ndarray)
    assert_right(again, model, X, args=(index.flip(0),))


def test_values_in_args_without_a_precomputation() -> None:
    model, X, args = built(any_negative), sequences(4, LENGTH), (torch.tensor([1, 0, -1, 1]),)
    for output in ("delta", "l2", "prediction"):
        found = yuzu.yuzu_ism(model, X, args=args, output=output, device="cpu")
        assert_right(found, model, X, args=args, output=output)
    *_, timings, inside = yuzu.yuzu_ism(model, X, args=args, return_timings=True, device="cpu")
    assert len(timings) == len(inside) == 2


@pytest.mark.parametrize("use", BY_MODEL)
def test_values_in_the_model(use: Callable[..., Any]) -> None:
    """Buffers are read as they are at each call."""
    model, X = built(use), sequences(2, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        nothing_is_naive(model, made)
        assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")
        model.flag.logical_not_()
        model.count.sub_(1)
        model.keep.copy_(torch.tensor([False, False, True, True, True]))
        model.scale.fill_(0.5)
        model.table.neg_()
        for precomputation in (made, None):
            assert_right(yuzu.yuzu_ism(model, X, precomputation, output="delta", device="cpu"), model, X, output="delta")


@pytest.mark.parametrize("use", [any_negative, by_flag])
def test_a_saved_one_is_valid_for_its_values_and_no_wrong_result_for_others(use: Callable[..., Any], tmp_path: Any) -> None:
    model, X = built(use), sequences(2, LENGTH)
    args = (torch.tensor([1, 2]),) if use is any_negative else None
    made = yuzu.precompute(model, LENGTH, args=args, device="cpu")
    made.save(tmp_path / "it.safetensors")
    loaded = yuzu.Precomputation.load(tmp_path / "it.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        first = yuzu.yuzu_ism(model, X, loaded, args=args, output="delta", device="cpu")
        assert_same(first, yuzu.yuzu_ism(model, X, made, args=args, output="delta", device="cpu"))
        model.flag.logical_not_()
        other = (torch.tensor([-1, 2]),) if use is any_negative else None
        found = yuzu.yuzu_ism(model, X, loaded, args=other, output="delta", device="cpu")
    assert_right(found, model, X, args=other or (), output="delta")


def test_another_architecture_is_refused_whatever_its_values() -> None:
    def wider(m, x, i):
        return any_negative(m, torch.relu(x), i)

    X, args = sequences(2, LENGTH), (torch.tensor([1, 2]),)
    made = yuzu.precompute(built(any_negative), LENGTH, args=args, device="cpu")
    for values in ([1, 2], [-1, 2]):
        with pytest.raises(PrecomputationError):
            other = built(wider)
            other.conv = nn.Conv1d(4, 5, 7, padding=3)
            yuzu.yuzu_ism(other, X, made, args=(torch.tensor(values),), device="cpu")
    with pytest.raises(PrecomputationError, match="architecture"):
        yuzu.yuzu_ism(built(wider), X, made, args=args, device="cpu")


def test_settings_are_those_of_the_given_one() -> None:
    model, X = built(any_negative), sequences(2, LENGTH)
    made = yuzu.precompute(model, LENGTH, args=(torch.tensor([1]),), conv="windows", terminal_layers=(nn.Conv1d,), device="cpu")
    args = (torch.tensor([-1, 1]),)
    assert_right(yuzu.yuzu_ism(model, X, made, args=args, output="delta", device="cpu"), model, X, args=args, output="delta")
    (other,) = made._others
    assert other.settings.conv == "windows" and set(other.decisions.naive.values()) == {"Conv1d is in terminal_layers"}


def test_more_ways_than_plans_are_kept_for() -> None:
    def chosen(m, x, i):
        return m.conv(x)[:, :, : int(i[0])].mean(2)

    model, X, args = built(chosen), sequences(12, LENGTH), (torch.arange(2, 14),)
    with pytest.warns(YuzuWarning, match="in more than 8 ways"):
        found = yuzu.yuzu_ism(model, X, args=args, output="delta", device="cpu")
    assert_right(found, model, X, args=args, output="delta")


def test_products_over_states() -> None:
    model, X, states = built(any_negative), sequences(2, LENGTH), torch.tensor([1, -1, 2])
    found = apply_product(yuzu.yuzu_ism, model, X, args=(states,), device="cpu", output="delta")
    for s, state in enumerate(states):
        assert_right(found[:, s], model, X, args=(state.expand(2),), output="delta")


def test_hybrid_ism() -> None:
    model, X, args = built(any_negative), sequences(3, LENGTH), (torch.tensor([1, -1, 2]),)
    found = yuzu.hybrid_ism(model, X, args=args, device="cpu")
    for row in range(3):
        one = tuple(a[row : row + 1] for a in args)
        assert torch.allclose(found[row], yuzu.hybrid_ism(model, X[row : row + 1], args=one, device="cpu")[0], atol=1e-6)


def test_what_the_model_refuses_is_its_own_error() -> None:
    model, X = built(asserted), sequences(2, LENGTH)
    made = yuzu.precompute(model, LENGTH, args=(torch.tensor([1]),), device="cpu")
    for precomputation in (made, None):
        with pytest.raises(YuzuError, match="unknown organism"):
            yuzu.yuzu_ism(model, X, precomputation, args=(torch.tensor([1, -9]),), device="cpu")


# ---- what is not captured


def by_sequence(m, x, *args):
    return (m.conv if x[:, 0].sum() > 1 else m.other)(x)


def by_sequence_and_args(m, x, i):
    return (m.conv if (m.conv(x).mean() * i[0]).item() > -9 else m.other)(x)  # the same for every batch


def by_written_over(m, x, i):
    seen = torch.zeros(3)
    view = seen[:2]
    view.copy_(x[0, 0, :2])
    return (m.conv if seen.sum() > 0 else m.other)(x)


@pytest.mark.parametrize("use", [by_sequence, by_sequence_and_args, by_written_over])
def test_what_the_sequence_reaches_runs_naively_and_says_so(use: Callable[..., Any]) -> None:
    model, args = built(use), (torch.tensor([1]),)
    with pytest.warns(YuzuWarning, match="runs naively.*(depends on the sequence|data-dependent)"):
        made = yuzu.precompute(model, LENGTH, args=args, device="cpu")
    assert made.decisions.naive_model


def test_the_line_is_named() -> None:
    with pytest.raises(CaptureError, match=r"bool of a tensor in test_branches.py, line \d+"):
        capture(built(by_sequence), (4, LENGTH), (), torch.float32)


def by_how_many(m, x, i):
    return (m.conv if i.sum() > 2 else m.other)(x)


def by_all_rows(m, x, i):
    return sum(m.conv(x)[:, k] for k in i.tolist())


def by_numbers_of_all_rows(m, x, i):
    return m.conv(x) * float(sum(i.numpy()))


@pytest.mark.parametrize("use", [by_how_many, by_all_rows, by_numbers_of_all_rows])
def test_what_other_rows_of_a_batch_decide_is_refused(use: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError, match=r"rows of a batch|two batch sizes: Unlike"):
        capture(built(use), (4, LENGTH), (torch.tensor([1]),), torch.float32)


def test_naive_for_some_values_and_planned_for_others(tmp_path: Any) -> None:
    """In whichever order they come."""

    def sometimes(m, x, i):
        return by_sequence(m, x) if i[0] < 0 else m.conv(x) * 2

    X = sequences(1, LENGTH)
    for values in ([1, -1, 1], [-1, 1, -1]):
        model, made = built(sometimes), None
        for value in values:
            args = (torch.tensor([value]),)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", YuzuWarning)
                made = made or yuzu.precompute(model, LENGTH, args=args, device="cpu")
                for one in (made, None):
                    found = yuzu.yuzu_ism(model, X, one, args=args, output="delta", device="cpu")
                    assert_right(found, model, X, args=args, output="delta", one_by_one=True)
        made.save(tmp_path / "it")
        for value in values:
            args = (torch.tensor([value]),)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", YuzuWarning)
                found = yuzu.yuzu_ism(model, X, yuzu.Precomputation.load(tmp_path / "it"), args=args, output="delta", device="cpu")
            assert_right(found, model, X, args=args, output="delta", one_by_one=True)


# ---- the model itself


@pytest.mark.parametrize("use", [any_negative, by_flag_changed, by_counter_in_place, looped])
def test_the_model_is_untouched(use: Callable[..., Any]) -> None:
    model, X = built(use), sequences(2, LENGTH)
    before = copy.deepcopy(model.state_dict())
    args = (torch.tensor([1, -1]),) if use in BY_ARGS else None
    yuzu.yuzu_ism(model, X, args=args, device="cpu")
    yuzu.yuzu_ism(model, X, args=args, device="cpu")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("use", [head_by_list, by_all_rows, by_sequence])
def test_no_mode_of_torch_stays_in_force(use: Callable[..., Any]) -> None:
    """An export that fails leaves its own function mode behind, and all later calls of torch went through ours."""
    before = _get_current_function_mode_stack()  # that of a device which is pretended
    with contextlib.suppress(CaptureError):
        capture(built(use), (4, LENGTH), (torch.tensor([1]),), torch.float32)
    assert _get_current_function_mode_stack() == before


def test_a_value_that_is_a_symbol_needs_no_other_plan() -> None:
    """What a graph can compute is not read while it is traced: training on does not make another."""
    model, X = built(lambda m, x: m.conv(x) * m.scale.item()), sequences(2, LENGTH)
    graph = capture(model, (4, LENGTH), (), torch.float32)
    assert not graph.branches
    made = yuzu.precompute(model, LENGTH, device="cpu")
    model.scale.fill_(3.0)
    assert_right(yuzu.yuzu_ism(model, X, made, output="delta", device="cpu"), model, X, output="delta")
    assert not made._others


def test_branches_hold_no_weights() -> None:
    graph = capture(built(by_parameter), (4, LENGTH), (), torch.float32)
    assert graph.branches.weights == {"conv.weight"}
    assert all(getattr(step, "kind", "") != "weight" or step.value is None for step in graph.branches.steps)
