"""The law for several members of a sequence."""


import torch
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def member_cases() -> None:
    case = bench("members")
    parts = {name: (lambda: nn.Conv1d(CHANNELS, 3, 3, padding=1)) for name in "abc"}
    members = lambda m, x: torch.stack([m.a(x), m.b(x), m.c(x)])  # noqa: E731
    combined = {
        "median": lambda s: s.median(0).values, "quantile": lambda s: s.quantile(0.4, dim=0, keepdim=True)[0], "sort": lambda s: s.sort(dim=0).values[1:].mean(0), "topk": lambda s: s.topk(2, 0)[0].sum(0),
        "kthvalue": lambda s: s.kthvalue(2, 0)[0], "softmax": lambda s: (s.softmax(0) * s).sum(0), "cumsum": lambda s: s.cumsum(0)[-1], "norm": lambda s: s.norm(dim=0),
        "std": lambda s: s.std(0), "std_mean": lambda s: (lambda a, b: a / (b.abs() + 1))(*torch.std_mean(s, 0)), "all": lambda s: (s > 0).all(0), "trimmed": lambda s: s.exp().sort(0).values[1],
        "moved": lambda s: s.movedim(0, -1).median(-1).values, "permuted": lambda s: s.permute(1, 2, 0, 3).flatten(1, 2), "of positions": lambda s: s.mean(3).median(0).values,
        "negative axis": lambda s: s.median(-4).values, "positions first": lambda s: s.amax(-1).softmax(0)[0], "log of mean": lambda s: s.log_softmax(2).exp().mean(0).log(),
        "clamped": lambda s: s.clamp(-0.1, 0.3).mean(0), "several": lambda s: s.mean((0, 3)),
    }  # fmt: skip
    for name, function in combined.items():
        families = {"of positions": {"median": "whole values"}, "positions first": {"softmax": "whole values", "amax": "reduce"}}.get(name, {})
        case(f"{name} of members", fn(lambda m, x, f=function: f(members(m, x)), **parts), mul="merge", **families)
    case("median of heads", fn(lambda m, x: torch.stack([m.a(x.flatten(1)), m.b(x.flatten(1)), m.c(x.flatten(1))]).median(0)[0], **dict.fromkeys("abc", lambda: nn.Linear(78, 2))),
         median="whole values")  # fmt: skip


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(member_cases)
