"""The law for operations that change the dtype."""

import torch
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def dtype_cases() -> None:
    case = bench("dtypes")
    case("double and back", fn(lambda x: x.double().exp().float()))
    case("to float64", fn(lambda x: x.mean(2).to(torch.float32).double()))
    case("type_as", fn(lambda x: x * (x > 0).type_as(x)), _to_copy="elementwise", type_as="elementwise")
    case("type_as of another float", fn(lambda x: x.double().exp().type_as(x)))
    case("rounded to bfloat16", fn(lambda x: x.bfloat16().float()), _to_copy="naive")
    case("sum in bfloat16", fn(lambda x: x.sum(2, dtype=torch.bfloat16).float()), sum="naive", _to_copy="naive")
    case("divided by bfloat16", fn(lambda m, x: x / m.p.bfloat16(), p=lambda: nn.Parameter(torch.rand(CHANNELS, 1) + 0.5)))
    case("float of mask", fn(lambda x: (x > 0).float().mean(2)), _to_copy="elementwise")
    case("mixed dtypes", fn(lambda x: x + x.double(),))
    case("one result unread", fn(lambda x: torch.max(x, 2)[0] + torch.var_mean(x, 2)[0]), var="whole values")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(dtype_cases)
