"""The law for dense layers and products, in attention too."""

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def dense_cases() -> None:
    case = bench("dense")
    flat = 13 * CHANNELS
    for trunk in (1, 5):
        case(f"flatten C,L trunk{trunk}", lambda: nn.Sequential(nn.Flatten(), nn.Linear(13 * CHANNELS, 4)), trunk)
        case(f"flatten L,C trunk{trunk}", fn(lambda m, x: m.fc(x.transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(flat, 4)), trunk)
        case(f"over positions trunk{trunk}", lambda: nn.Linear(13, 4), trunk)
        case(f"on channels trunk{trunk}", fn(lambda m, x: m.fc(x.transpose(1, 2)), fc=lambda: nn.Linear(CHANNELS, 4)), trunk)
    case("flatten letters", lambda: nn.Sequential(nn.Flatten(), nn.Linear(52, 4)), 0)
    case("flatten letters L,C", fn(lambda m, x: m.fc(x.transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(52, 4)), 0)
    case("no bias", lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, 4, bias=False)))
    case("flatten after pool", lambda: nn.Sequential(nn.MaxPool1d(3), nn.Flatten(), nn.Linear(4 * CHANNELS, 4)))
    case("flatten L,C after pool", fn(lambda m, x: m.fc(F.max_pool1d(x, 3).transpose(1, 2).flatten(1)), fc=lambda: nn.Linear(4 * CHANNELS, 4)))
    case("flatten relu linear", lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(flat, 4), nn.ReLU(), nn.Linear(4, 2)))
    case("flatten with an axis before", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).flatten(2)), fc=lambda: nn.Linear(39, 2)))
    case("flatten with an axis before, L,C", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).transpose(2, 3).flatten(2)), fc=lambda: nn.Linear(39, 2)))
    case("flatten between", fn(lambda m, x: m.fc(x.view(x.shape[0], 2, 3, 13).permute(0, 1, 3, 2).flatten(1)), fc=lambda: nn.Linear(flat, 2)))
    case("flatten flipped", fn(lambda m, x: m.fc(x.flip(2).flatten(1)), fc=lambda: nn.Linear(flat, 2)), 5)
    case("flatten sliced", fn(lambda m, x: m.fc(x[:, :, ::2].flatten(1)), fc=lambda: nn.Linear(7 * CHANNELS, 2)))
    case("part of the flattened", fn(lambda x: F.relu(x.flatten(1)[:, 5:30])), slice="whole values")
    case("linear on rows", fn(lambda m, x: m.fc(x.amax(2)), fc=lambda: nn.Linear(CHANNELS, 3)))
    case("linear on a middle axis of rows", fn(lambda m, x: m.fc(x.softmax(2).transpose(1, 2)), fc=lambda: nn.Linear(CHANNELS, 3)),
         softmax="whole values", _softmax="whole values")  # fmt: skip
    case("mlp on channels", fn(lambda m, x: x + m.net(x.transpose(1, 2)).transpose(1, 2), net=lambda: nn.Sequential(
        nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 9), nn.GELU(), nn.Linear(9, CHANNELS))))  # fmt: skip
    case("linear over positions, n,C,1,L", fn(lambda m, x: m.fc(x.unsqueeze(2)), fc=lambda: nn.Linear(13, 3)))
    case("addmm", fn(lambda m, x: torch.addmm(m.b, x.flatten(1), m.w), b=lambda: nn.Parameter(torch.randn(3)), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("addmm on rows", fn(lambda m, x: torch.addmm(m.b, x.sum(2), m.w), b=lambda: nn.Parameter(torch.randn(3)), w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))))
    case("addmm with factors", fn(lambda m, x: torch.addmm(m.b, x.sum(2), m.w, beta=2.0, alpha=0.5), b=lambda: nn.Parameter(torch.randn(3)),
         w=lambda: nn.Parameter(torch.randn(CHANNELS, 3))), addmm="naive")  # fmt: skip
    case("mm", fn(lambda m, x: torch.mm(x.flatten(1), m.w), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("matmul with a vector", fn(lambda m, x: x.transpose(1, 2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("matmul of positions with a vector", fn(lambda m, x: x @ m.w, w=lambda: nn.Parameter(torch.randn(13))))
    case("matmul of letters with a vector", fn(lambda m, x: (x.transpose(1, 2) @ m.w).relu(), w=lambda: nn.Parameter(torch.randn(4))), 0)
    case("matmul of rows with a vector", fn(lambda m, x: x.sum(2) @ m.w, w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("bilinear", fn(lambda m, x: m.f(x.sum(2), x.amax(2)), f=lambda: nn.Bilinear(CHANNELS, CHANNELS, 2)), bilinear="whole values")
    case("two heads", fn(lambda m, x: (m.a(x.flatten(1)), m.b(x.transpose(1, 2))), a=lambda: nn.Linear(flat, 2), b=lambda: nn.Linear(CHANNELS, 3)))
    case("transposed linear", fn(lambda m, x: F.linear(x.flatten(1), m.w.t()), w=lambda: nn.Parameter(torch.randn(flat, 3))))
    case("weight made of weights", fn(lambda m, x: F.linear(x.flatten(1), torch.softmax(m.w, 1) * 2), w=lambda: nn.Parameter(torch.randn(3, flat))))

    case = bench("attention and recurrence", length=10)
    for causal in (False, True):
        case(f"scaled dot product, causal {causal}", fn(lambda x, c=causal: (lambda y: F.scaled_dot_product_attention(y, y, y, is_causal=c))(
            x.transpose(1, 2).unflatten(2, (2, 3)).transpose(1, 2))))  # fmt: skip
    case("multihead", lambda: SelfAttention())
    case("multihead by a mask", lambda: SelfAttention(torch.ones(10, 10).triu(1).bool()), only_double=True)
    case("encoder layer", fn(lambda m, x: m.layer(x.transpose(1, 2)), layer=lambda: nn.TransformerEncoderLayer(CHANNELS, 2, 8, batch_first=True)))
    case("product and sum", fn(lambda m, x: torch.baddbmm(m.w, x.transpose(1, 2), x), w=lambda: nn.Parameter(torch.randn(10, 10))))
    case("a matrix for each group", fn(lambda m, x: x.unflatten(1, (2, 3)).transpose(2, 3) @ m.w, w=lambda: nn.Parameter(torch.randn(2, 3, 4))))
    case("a matrix for each group of one row", fn(lambda m, x: x.unflatten(1, (2, 3)).mT @ m.w, w=lambda: nn.Parameter(torch.randn(1, 2, 3, 4))))
    case("a matrix over positions for each group", fn(lambda m, x: x.unflatten(1, (2, 3)) @ m.w, w=lambda: nn.Parameter(torch.randn(2, 10, 4))))
    case("a matrix for each position", fn(lambda m, x: x.unflatten(1, (2, 3)).movedim(3, 1) @ m.w, w=lambda: nn.Parameter(torch.randn(10, 3, 4))))
    case("complex numbers", fn(lambda m, x: torch.view_as_real(
        torch.view_as_complex(x.transpose(1, 2).contiguous().unflatten(2, (3, 2))) * torch.complex(m.w, 1 - m.w)), w=lambda: nn.Parameter(torch.randn(10, 3))), view_as_complex="view", view_as_real="view")  # fmt: skip
    case("complex numbers of positions", fn(lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (5, 2))).cumsum(2))),
         cumsum="reduce", view_as_complex="view", view_as_real="view")  # fmt: skip
    case("attention by hand", lambda: HandAttention(), matmul="whole values")
    case("attention by hand, batch in the middle", lambda: HandAttention(batch_first=False), matmul="whole values")
    case("zeros for each row", fn(lambda x: x + torch.zeros(len(x), CHANNELS, 1, dtype=x.dtype)))


class SelfAttention(nn.Module):
    def __init__(self, mask: torch.Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        return y + self.attention(y, y, y, need_weights=False, attn_mask=self.mask)[0]


class HandAttention(nn.Module):
    """Softmax attention written out, with a learned bias of relative positions."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.bias = nn.Parameter(torch.randn(2, 10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(x.transpose(1, 2)).unflatten(2, (3, 2, 3))
        q, k, v = qkv.transpose(1, 3).unbind(2) if self.batch_first else qkv.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5 + self.bias, -1)
        return (weights @ v).transpose(1, 2).flatten(2)


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(dense_cases)
