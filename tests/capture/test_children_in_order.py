"""The second way to a graph: the children of a model in order, where its forward does no more."""

import pytest
import torch

from tests.capture.models import Inspecting, run_graph, seeded
from tests.laws.random_models import (
    one_hot,
)
from yuzu._engine.capture.errors import CaptureError
from yuzu._engine.rewrite.all import capture

LENGTH = 12


def test_children_in_order_is_the_second_road() -> None:
    model = seeded(Inspecting).eval()
    graph = capture(model, (4, LENGTH), (), torch.float64)
    assert graph.route == "children"
    assert [n.layer for n in graph.nodes if n.kind == "call"] == ["conv", "relu", "head"]
    X = one_hot(2, 4, LENGTH)
    assert torch.allclose(run_graph(graph, model, X), model(X))


class NotInOrder(Inspecting):
    """As above, but its forward does a little more than its children."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0 * x[:, :2]


class ByContent(Inspecting):
    """Children in order for most sequences, and not for some."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x[:, 1].sum() > 1000).any()):
            return self.head(self.conv(x))
        return super().forward(x)


class ByListedContent(ByContent):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if max(x.sum(1).flatten().tolist()) > 5:
            return self.head(self.conv(x))
        return Inspecting.forward(self, x)


class Twice(Inspecting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(super().forward(x))


@pytest.mark.parametrize("kind", [NotInOrder, ByContent, ByListedContent, Twice])
def test_agreeing_on_one_input_is_no_proof_of_order(kind: type) -> None:
    model = seeded(kind).eval()
    with pytest.raises(CaptureError):
        capture(model, (4, LENGTH), (), torch.float64)
