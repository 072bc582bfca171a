"""Models that return an object: its tensors are taken out to be captured, and ``func`` gets an object of the same class."""

import collections
import dataclasses
import types
import typing
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import yuzu
from tests.oracle import assert_right
from tests.small_models import randomized, sequences
from yuzu._engine.capture.outputs import Inseparable, map_tensors, taken_apart, tensors_in
from yuzu.errors import YuzuError, YuzuWarning

LENGTH = 16


@dataclasses.dataclass
class Data:
    profile: torch.Tensor
    counts: torch.Tensor
    name: str = "as it was"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    profile: torch.Tensor
    counts: torch.Tensor


class Plain:
    """Written as ``attrs`` writes it, with what is computed from its tensors."""

    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        self.profile, self._counts = profile, counts

    @property
    def counts(self) -> torch.Tensor:
        return self._counts


class Slots:
    __slots__ = ("__hidden", "profile", "unset")

    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        self.profile, self.__hidden = profile, counts

    @property
    def counts(self) -> torch.Tensor:
        return self.__hidden


class ModelOutput(collections.OrderedDict):
    """Items that are attributes, too, as in the transformers library."""

    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        super().__init__()
        self["profile"], self["counts"] = profile, counts

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


class Attributes(dict):
    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        super().__init__(profile=profile, counts=counts)

    __getattr__ = dict.__getitem__


class Listed(list):
    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        super().__init__([profile, counts])

    profile, counts = property(lambda self: self[0]), property(lambda self: self[1])


class Named(collections.namedtuple("Pair", ["profile", "counts"])):
    """A subclass, which not every PyTorch takes for a named tuple."""


class Typed(typing.NamedTuple):
    profile: torch.Tensor
    counts: torch.Tensor


class Nested:
    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        self.inner, self.more = Data(profile, counts), [{"a": Plain(profile, counts)}, 3]

    profile, counts = property(lambda self: self.inner.profile), property(lambda self: self.more[0]["a"].counts)


def namespace(profile: torch.Tensor, counts: torch.Tensor) -> Any:
    return types.SimpleNamespace(profile=profile, counts=counts)


KINDS = [Data, Frozen, Plain, Slots, ModelOutput, Attributes, Listed, Named, Typed, Nested, namespace]


class Returning(nn.Module):
    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.head, self.kind = nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5, 2), kind

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.relu(self.conv(x))
        return self.kind(y, self.head(y.mean(2)))


def picked(output: Any) -> torch.Tensor:
    return torch.cat([output.profile.mean(2), output.counts], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_func_picks_from_an_object_of_the_same_class(kind: Callable[..., Any]) -> None:
    model, X, seen = randomized(Returning(kind)).eval(), sequences(2, LENGTH), set()

    def func(output: Any) -> torch.Tensor:
        seen.add(type(output))
        found = picked(output)
        output.profile.zero_()  # of its own
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error", YuzuWarning)
        made = yuzu.precompute(model, LENGTH, device="cpu")
        assert made.decisions.naive_model is None and not made.decisions.naive
        for output in ("delta", "l2"):
            found = yuzu.yuzu_ism(model, X, made, func=func, output=output, device="cpu")
            assert_right(found, model, X, func=picked, output=output)
    assert seen == {type(model(X))} and not seen & pytree.SUPPORTED_NODES.keys()


@pytest.mark.parametrize("kind", [Data, Frozen, Plain, ModelOutput, Nested, namespace])
def test_without_func_there_is_nothing_to_score(kind: Callable[..., Any]) -> None:
    model, X = randomized(Returning(kind)).eval(), sequences(2, LENGTH)
    for made in (None, yuzu.precompute(model, LENGTH, device="cpu")):
        with pytest.raises(YuzuError, match="holds no tensor to score; give a func that picks the tensors"):
            yuzu.yuzu_ism(model, X, made, device="cpu")


@pytest.mark.parametrize("output", ["delta", "l2"])
def test_of_an_object_beside_a_tensor_only_the_tensor_is_scored(output: str) -> None:
    model, X = randomized(Returning(lambda p, c: (Data(p, c), c))).eval(), sequences(2, LENGTH)
    found = yuzu.yuzu_ism(model, X, output=output, device="cpu")
    assert_right(found if output == "l2" else found[1], model, X, func=lambda y: y[1], output=output)


def test_hybrid_ism_with_func() -> None:
    model, X = randomized(Returning(Data)).eval(), sequences(2, LENGTH)
    found = yuzu.hybrid_ism(model, X, func=lambda output: output.counts, device="cpu")
    assert_right(found.permute(0, 2, 3, 1), model, X, func=lambda output: output.counts, output="delta")


# ---- taking apart


def test_parts_and_their_places() -> None:
    a, b = torch.rand(2), torch.rand(3)
    for kind in KINDS:
        values, recipe = taken_apart(kind(a, b))
        assert {id(value) for value in values} == {id(a), id(b)} and len(values) == 2
        if recipe is None:
            assert kind in (Typed, Named)
            continue
        exchanged = {id(a): b, id(b): a}
        again = recipe([exchanged[id(value)] for value in values])
        assert again.profile is b and again.counts is a and type(again) is type(kind(a, b))
    values, recipe = taken_apart((Data(a, b), {"c": [a, 3, None, "text"]}))
    assert len(values) == 2
    again = recipe([b, a])
    assert again[0].profile is b and again[0].name == "as it was" and again[1]["c"][0] is b and again[1]["c"][1:] == [3, None, "text"]


def test_what_holds_no_tensors_is_left_alone() -> None:
    config = types.SimpleNamespace(width=3)
    for output in ((torch.rand(2), config), [3, "text", None, torch.float32, nn.Linear(2, 2)], {"a": torch.rand(1)}):
        values, recipe = taken_apart(output)
        assert recipe is None and len(values) == len(pytree.tree_leaves(output))
        assert map_tensors(lambda t: t, output) == output
    assert len(tensors_in((torch.rand(2), config))) == 1


class Circle:
    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        self.profile, self.counts, self.itself = profile, counts, self


class Closed:
    def __init__(self, profile: torch.Tensor, counts: torch.Tensor) -> None:
        self.profile, self.counts, self.total = profile, counts, lambda: counts.sum()


@pytest.mark.parametrize("kind", [Circle, Closed])
def test_what_cannot_be_taken_apart_runs_naively(kind: Callable[..., Any]) -> None:
    with pytest.raises(Inseparable):
        taken_apart(kind(torch.rand(2), torch.rand(3)))
    model, X = randomized(Returning(kind)).eval(), sequences(2, LENGTH)
    with pytest.warns(YuzuWarning, match="runs naively.*the model returns"):
        found = yuzu.yuzu_ism(model, X, func=picked, output="delta", device="cpu")
    assert_right(found, model, X, func=picked, output="delta")
