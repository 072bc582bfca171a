"""The law for complex numbers."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def complex_cases() -> None:
    case = bench("complex numbers")
    # `Module.to` leaves nothing of a complex parameter's imaginary part
    made = lambda *shape: lambda: nn.Parameter(torch.randn(*shape, 2))  # noqa: E731
    wide = lambda x: x.to(torch.complex128)  # noqa: E731
    families = {"view_as_real": "view", "view_as_complex": "view", "_conj": "view", "_to_copy": "view", "to": "view"}

    def one(name: str, function: Callable[..., Any], trunk: int = 3, parts: dict[str, Any] | None = None, **more: str) -> None:
        def run(m: nn.Module, x: torch.Tensor) -> Any:
            weights = {key: torch.view_as_complex(value) for key, value in m.named_parameters(recurse=False)}
            return function(SimpleNamespace(**weights, **dict(m.named_children())), x)

        case(name, fn(run if parts else function, **(parts or {})), trunk, only_double=True, **{**families, **more})

    for k, s, p, d, g in ((3, 1, 1, 1, 1), (4, 2, 3, 1, 2), (3, 1, 2, 2, 1), (5, 3, 0, 1, 1)):
        one(f"convolution k{k} s{s} p{p} d{d} g{g}", lambda m, x, s=s, p=p, d=d, g=g: F.conv1d(wide(x), m.w, m.b, s, p, d, g).abs(), parts={"w": made(4, CHANNELS // g, k), "b": made(4)})
    one("convolution of letters", lambda m, x: F.conv1d(wide(x), m.w, padding=2).abs(), 0, {"w": made(4, 4, 5)})
    one("convolution padding same", lambda m, x: F.conv1d(wide(x), m.w, padding="same").real, 5, {"w": made(4, CHANNELS, 4)})
    one("convolution of n,C,1,L", lambda m, x: F.conv2d(wide(x).unsqueeze(2), m.w, padding=(0, 1)).imag, parts={"w": made(4, CHANNELS, 1, 3)})
    one("convolution of n,C,L,1", lambda m, x: F.conv2d(wide(x).unsqueeze(3), m.w, stride=(2, 1)).imag, parts={"w": made(4, CHANNELS, 3, 1)})
    one("transposed convolution", lambda m, x: F.conv_transpose1d(wide(x), m.w, stride=2).abs(), parts={"w": made(CHANNELS, 3, 4)})
    one("parts squared", lambda m, x: (lambda z: z.real**2 + z.imag**2)(F.conv1d(wide(x), m.w)), parts={"w": made(4, CHANNELS, 3)})
    one("two convolutions", lambda m, x: torch.complex(m.a(x), m.b(x)).abs(), parts=dict.fromkeys("ab", lambda: nn.Conv1d(CHANNELS, 3, 3)))
    one("rectified parts", lambda m, x: (lambda z: torch.complex(z.real.relu(), z.imag.relu()))(x * m.w).abs(), parts={"w": made(CHANNELS, 1)})
    one("product and conjugate", lambda m, x: (x * m.w * (x.flip(1) * m.w).conj()).real, parts={"w": made(CHANNELS, 1)}, mul="merge|elementwise")
    one("angle and length", lambda m, x: (x * m.w + 1).angle() + (x * m.w).abs(), parts={"w": made(CHANNELS, 1)})
    one("polar", lambda x: torch.polar(x.abs(), x).imag + torch.exp(1j * x).real)
    one("sum over positions", lambda m, x: (x * m.w).mean(2).abs(), parts={"w": made(CHANNELS, 1)})
    one("linear", lambda m, x: F.linear(wide(x.transpose(1, 2)), m.w, m.b).abs(), parts={"w": made(3, CHANNELS), "b": made(3)})
    one("linear of flattened", lambda m, x: F.linear(wide(x.flatten(1)), m.w).abs(), parts={"w": made(3, 13 * CHANNELS)})
    one("joined, cropped, sorted out", lambda m, x: torch.cat([x * m.w, wide(x)], 1)[:, 2:, 3:-2].flip(2).abs(), parts={"w": made(CHANNELS, 1)})
    one("rotary", lambda m, x: torch.view_as_real(torch.view_as_complex(x.transpose(1, 2).unflatten(2, (3, 2)).contiguous()) * m.w).flatten(2), parts={"w": made(13, 3)})
    one("divided", lambda m, x: (x * m.w / (x * m.v + 3)).abs(), parts={"w": made(CHANNELS, 1), "v": made(CHANNELS, 1)})
    one("returned", lambda m, x: x * m.w, parts={"w": made(CHANNELS, 1)})


(
    test_the_law_in_float64,
    _,  # none of its cases runs in float32
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(complex_cases)
