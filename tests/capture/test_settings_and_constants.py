"""Settings that a model calls, and outputs that are no tensors."""

import torch

import yuzu
from tests.run.headed import Headed, sequences

L = 30


def test_a_callable_settings_object_is_noticed():
    class Settings:
        scale = 1.0

        def __call__(self):
            return self.scale

    model = Headed(lambda h, x: h.sum(2))
    model.settings = Settings()
    model.head = lambda h, x: h.sum(2) * model.settings.scale
    X = sequences()
    before = yuzu.yuzu_ism(model, X)
    model.settings.scale = 3.0
    assert torch.allclose(yuzu.yuzu_ism(model, X), 3 * before, rtol=1e-4)


def test_what_is_no_tensor_keeps_its_place():
    model = Headed(lambda h, x: {"a": h.sum(2), "b": None, "c": 3.0})
    for ism in (yuzu.yuzu_ism, yuzu.naive_ism):
        found = ism(model, sequences(), output="delta")
        assert list(found) == ["a", "b", "c"] and found["b"] is None and found["c"] == 3.0
        assert found["a"].shape == (2, 4, L, 6)
