"""The law for activations and other operations on each number."""

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
    nn.Sigmoid, nn.Tanh, nn.Mish, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip


def elementwise_cases() -> None:
    case = bench("activations")
    for activation in ACTIVATIONS:
        case(activation.__name__, activation)
    case("GELU after flatten", lambda: nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(13 * CHANNELS, 2)))
    case("SiLU after flatten L,C", fn(lambda x: F.silu(x.transpose(1, 2).flatten(1))))
    case("GELU tanh", lambda: nn.GELU(approximate="tanh"))
    case("exp", fn(torch.exp))
    case("ReLU in place", lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.ReLU(inplace=True), nn.Conv1d(CHANNELS, 2, 3)))
    case("ReLU of letters", nn.ReLU, 0)
    case("softmax that turns over", fn(lambda x: (torch.softmax(20 * x, 1), torch.log_softmax(20 * x, 1), torch.softmax(20 * x, 2))),
         softmax="elementwise|whole values")  # fmt: skip
    case("large arguments", fn(lambda x: (torch.sigmoid(40 * x), torch.tanh(30 * x), torch.exp(8 * x), F.softplus(50 * x))))
    case("relu on rows", fn(lambda x: F.relu(x.sum(2) - 1)))
    case("sigmoid on rows", fn(lambda x: torch.sigmoid(x.sum(2) - 1).tanh().exp()))
    case("PReLU", nn.PReLU)
    case("PReLU for each channel", lambda: nn.PReLU(CHANNELS))
    case("PReLU on rows", fn(lambda m, x: m.slope(x.sum(2)), slope=lambda: nn.PReLU(CHANNELS)), _prelu_kernel="whole values", prelu="whole values")
    case("dropout", lambda: nn.Sequential(nn.Dropout(), nn.Dropout1d(), nn.AlphaDropout(), nn.Identity(), nn.ReLU()))
    case("clamp", fn(lambda x: x.clamp(-0.2, 0.4)))
    case("clamp min", fn(lambda x: x.clamp_min(0.1) + x.clamp(max=0.3)))
    case("where", fn(lambda x: torch.where(x > 0.1, x, -2 * x)))
    case("where scalar", fn(lambda x: torch.where(x > 0.1, x, 0.5)))
    case("mask multiply", fn(lambda x: x * (x > 0)))
    case("mask of floats", fn(lambda x: (x > 0).double() * (x < 0.5).to(x.dtype)), _to_copy="elementwise")
    case("comparisons", fn(lambda x: ((x >= 0.1) & (x != 0.3) | ~(x <= 0.7)).double()), _to_copy="elementwise")
    case("mask output", fn(lambda x: x > 0.2))
    case("mask sliced", fn(lambda x: (x > 0)[:, :, 2:-3].double()))
    case("mask padded", fn(lambda x: F.pad((x > 0).double(), (2, 3))), _to_copy="elementwise")
    case("mask transposed", fn(lambda x: (x > 0).transpose(1, 2).double()))
    case("mask flipped", fn(lambda x: (x > 0).flip(2).double()))
    case("mask reshaped", fn(lambda x: (x > 0).unflatten(1, (2, 3)).double()))
    case("mask split", fn(lambda x: (x > 0)[:, :, :12].unflatten(2, (4, 3)).double()))
    case("mask flattened", fn(lambda x: (x > 0).flatten(1).double()))
    case("mask strided", fn(lambda x: (x > 0)[:, :, ::3].double()))
    case("mask of one position", fn(lambda x: (x > 0)[:, :, 4].double()), select="whole values")
    case("mask expanded", fn(lambda x: (x[:, :1] > 0).expand(-1, 3, -1) * x[:, :3]))
    case("mask repeated", fn(lambda x: (x > 0).repeat_interleave(2, 1).double()))
    case("argmax", fn(lambda x: x.argmax(1).double()))
    case("argmax kept", fn(lambda x: x.argmin(1, keepdim=True) * x))
    case("argmax over positions", fn(lambda x: x.argmax(2).double()), only_double=True, argmax="whole values", to="whole values", _to_copy="whole values")
    case("any and all", fn(lambda x: (x > 0).any(1, keepdim=True) * x + (x[:, :2] > 0).all(1).unsqueeze(1)))
    case("any over positions", fn(lambda x: (x > 0.4).any(2).double()), any="whole values", to="whole values", _to_copy="whole values")
    case("tokens", fn(lambda m, x: m.table(x.argmax(1)).transpose(1, 2), table=lambda: nn.Embedding(4, 3)), 0)
    case("tokens of k-mers", fn(lambda m, x: m.table(_kmers(x)).transpose(1, 2).relu(), table=lambda: nn.Embedding(64, 3)), 0)
    case("tokens of some", fn(lambda m, x: m.table(x.argmax(1)[:, ::2].flip(1)), table=lambda: nn.Embedding(4, 3)), 0)
    case("tokens before a linear layer", fn(lambda m, x: m.fc(m.table(x.argmax(1)).flatten(1)), table=lambda: nn.Embedding(4, 3), fc=lambda: nn.Linear(39, 2)), 0)
    case("rows of a matrix", fn(lambda m, x: m.table[x.argmax(1)].transpose(1, 2).relu(), table=lambda: torch.linspace(-1, 1, 12).view(4, 3).double()), 0, only_double=True, index="elementwise")
    case("rows of rows", fn(lambda m, x: m.table[x.mean(2).argmax(1)], table=lambda: torch.linspace(-1, 1, 18).view(6, 3).double()), only_double=True,
         argmax="whole values", index="whole values")  # fmt: skip
    case("one-hot of tokens", fn(lambda m, x: m.conv(F.one_hot(x.argmax(1), 5).transpose(1, 2)[:, :4].to(x.dtype)), conv=lambda: nn.Conv1d(4, 3, 4)), 0, only_double=True)
    case("tokens of whole values", fn(lambda m, x: m.table(x.mean(2).argmax(1)), table=lambda: nn.Embedding(CHANNELS, 3)),
         argmax="whole values", embedding="whole values")  # fmt: skip
    case("mask moved on", fn(lambda x: x.transpose(1, 2) * (x.sum(1) > 0).unsqueeze(2) + (x[:, 0] > 0).flip(1)[:, :, None]), 5)
    case("integer arithmetic", fn(lambda x: ((x * 10).round().long() % 3 - 1).double()), sub="elementwise", _to_copy="elementwise")
    whole = {"_to_copy": "elementwise"}
    case("masks multiplied", fn(lambda x: ((x > 0.1) * (x.flip(1) > 0)).double()), mul="elementwise", **whole)
    case("whole numbers multiplied", fn(lambda x: ((x * 9).long() * (x * 5).long().flip(1)).double()), mul="elementwise", any="whole values")
    case("whole numbers rectified", fn(lambda x: F.relu((x * 9).long()).double()), **whole)
    case("whole numbers by a matrix", fn(lambda x: ((x * 9).long() @ torch.arange(26).view(13, 2)).double()), matmul="naive", _to_copy="elementwise|naive")
    case("whole numbers convolved", fn(lambda x: F.conv1d((x * 9).long(), torch.ones(2, CHANNELS, 3, dtype=torch.long)).double()),
         conv1d="convolution|naive", _to_copy="elementwise|naive")  # fmt: skip
    case("divided by whole numbers", fn(lambda x: x / torch.arange(3, 16)))
    case("divided by whole numbers for each channel", fn(lambda x: x / torch.arange(3, 3 + CHANNELS)[:, None]))
    case("masked fill", fn(lambda x: x.masked_fill(x > 0.2, -1.0)))
    case("masked softmax", fn(lambda x: x.masked_fill(x > 0.2, float("-inf")).softmax(1)))
    case("masked softmax over positions", fn(lambda x: x.masked_fill(x > 0.4, float("-inf")).softmax(2)), softmax="whole values",
         _softmax="whole values")  # fmt: skip
    case("mask by constant, softmax", fn(lambda m, x: x.masked_fill(m.mask, float("-inf")).softmax(2),
         mask=lambda: torch.arange(13) % 3 == 0), softmax="whole values", _softmax="whole values")  # fmt: skip
    case("log of rectified", fn(lambda x: torch.log(F.relu(x)).exp()))
    case("log", fn(lambda x: torch.log(x.abs() + 0.1)))
    case("powers", fn(lambda x: x**2 + x.abs() ** 0.5 + (x * x + 1).rsqrt() + 1 / (x + 9)))
    case("rounding", fn(lambda x: x.floor() + (3 * x).round() + x.sign() + x.trunc() + x.frac()))
    case("in place", fn(lambda x: x.mul_(2).add_(1).clamp_(min=0.5).relu_()))
    case("in place on a slice", fn(_half_relu), cat="merge", copy="elementwise", slice_scatter="naive", clone="naive")
    case("minimum and maximum", fn(lambda x: torch.maximum(x[:, :3], x[:, 3:]) - torch.minimum(x[:, :3], 2 * x[:, 3:])))
    case("atan2", fn(lambda x: torch.atan2(x[:, :3], x[:, 3:])))
    case("polynomial of branches", fn(lambda m, x: torch.addcmul(x, m.conv(x), x, value=0.5), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("lerp", fn(lambda m, x: torch.lerp(x, m.conv(x), 0.3), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("division of branches", fn(lambda m, x: x / (m.conv(x) ** 2 + 1), conv=lambda: nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2)))
    case("scalar over", fn(lambda x: 2.0 / (x + 9)))
    case("floor division", fn(lambda x: torch.div(x, 0.3, rounding_mode="floor")))
    case("negative", fn(lambda x: -x))
    case("negative integers", fn(lambda x: -(x > 0).long()))
    case("nan_to_num", fn(lambda x: torch.nan_to_num(x / x.clamp(min=0))), only_double=True)


def _kmers(x: torch.Tensor) -> torch.Tensor:
    letters = x.argmax(1)
    return 16 * letters[:, :-2] + 4 * letters[:, 1:-1] + letters[:, 2:]


def _half_relu(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, :3] = F.relu(y[:, :3])
    return y


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(elementwise_cases)
