"""The law for norms."""

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def norm_cases() -> None:
    case = bench("norms")
    case("batch norm", lambda: nn.BatchNorm1d(CHANNELS))
    case("batch norm of letters", lambda: nn.BatchNorm1d(4), 0)
    case("batch norm plain", lambda: nn.BatchNorm1d(CHANNELS, affine=False))
    case("batch norm after flatten", lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(CHANNELS * 13)))
    case("batch norm on rows", fn(lambda m, x: m.norm(x.sum(2)), norm=lambda: nn.BatchNorm1d(CHANNELS)))
    case("batch norm over positions as channels", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.BatchNorm1d(13)))
    case("batch norm 2d", fn(lambda m, x: m.norm(x.unsqueeze(2)), norm=lambda: nn.BatchNorm2d(CHANNELS)))
    case("batch norm 2d n,1,C,L", fn(lambda m, x: m.norm(x.unsqueeze(1)), norm=lambda: nn.BatchNorm2d(1)))
    case("layer norm over channels", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.LayerNorm(CHANNELS)))
    case("layer norm over positions", lambda: nn.LayerNorm(13), layer_norm="whole values", native_layer_norm="whole values")
    case("layer norm over both", lambda: nn.LayerNorm((CHANNELS, 13)), layer_norm="whole values", native_layer_norm="whole values")
    case("layer norm on rows", fn(lambda m, x: m.norm(x.sum(2)), norm=lambda: nn.LayerNorm(CHANNELS)), layer_norm="whole values")
    case("layer norm by hand", fn(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()))
    case("rms norm", fn(lambda m, x: m.norm(x.transpose(1, 2)), norm=lambda: nn.RMSNorm(CHANNELS)))
    case("group norm", lambda: nn.GroupNorm(2, CHANNELS))
    case("instance norm", lambda: nn.InstanceNorm1d(CHANNELS, affine=True))
    case("instance norm with statistics", lambda: nn.InstanceNorm1d(CHANNELS, track_running_stats=True))
    case("instance norm 2d with statistics", fn(lambda m, x: m.norm(x.unsqueeze(2)), norm=lambda: nn.InstanceNorm2d(CHANNELS, track_running_stats=True)))
    case("instance norm with statistics and weights", lambda: nn.InstanceNorm1d(CHANNELS, affine=True, track_running_stats=True))
    case("local response norm", lambda: nn.LocalResponseNorm(3), avg_pool2d="whole values", mul="merge|whole values", add="merge|whole values",
         pow="whole values", div="whole values")  # fmt: skip
    case("softmax over channels", lambda: nn.Softmax(1))
    case("log softmax over channels", lambda: nn.LogSoftmax(1))
    case("softmax over positions", lambda: nn.Softmax(2), softmax="whole values", _softmax="whole values")
    case("log softmax over positions", lambda: nn.LogSoftmax(-1), log_softmax="whole values", _log_softmax="whole values")
    case("softmax in float32", fn(lambda x: F.softmax(x, 1, dtype=torch.float64)))
    case("GLU", lambda: nn.GLU(1))
    case("GLU over positions", fn(lambda x: F.glu(x[:, :, :12], 2)), glu="whole values")


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(norm_cases)
