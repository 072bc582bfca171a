"""Attention after a convolution tower, in the ways that people write it: exact, with windows up to the scores and nothing naive.

The heads of a group are captured together, as the outputs of one model.
"""

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import yuzu
from tests.capturing import capturing_once
from tests.laws.random_models import one_hot, relative_error
from yuzu._engine.derived import Derived
from yuzu._engine.graph import Graph, Weights
from yuzu._engine.plan.plan import make_plan
from yuzu._engine.rewrite.batch_first import batch_axes
from yuzu._engine.run.run import Run
from yuzu._engine.store import making
from yuzu._engine.tune import chunks

L, T, D, H = 24, 8, 8, 2  # letters, tokens, channels, heads
EXACT = 1e-9
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_plan_loses_by_the_clock(monkeypatch):
    monkeypatch.setattr(chunks, "WORTH_COMPARING", math.inf)


@dataclass
class Head:
    """One way of attention: a function of the model, letters ``(B, 4, L)``, tokens ``(B, T, D)``, modules of its own, and
    so many other inputs as it ``reads``.
    """

    function: Callable[..., torch.Tensor]
    modules: dict[str, Any] = field(default_factory=dict)
    reads: int = 0


class Model(nn.Module):
    """A tower, projections that all heads share, and the heads, each with its own output."""

    def __init__(self, heads: dict[str, Head]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, D, 5, padding=2)
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
        self.qkv = nn.Linear(D, 3 * D)
        self.heads = {name: (head.function, head.reads) for name, head in heads.items()}
        for i, head in enumerate(heads.values()):
            for name, module in head.modules.items():
                setattr(self, f"{name}_{i}", copy.deepcopy(module))
        self.names = [[f"{name}_{i}" for name in head.modules] for i, head in enumerate(heads.values())]

    def forward(self, x: torch.Tensor, *args: torch.Tensor) -> dict[str, torch.Tensor]:
        z = F.max_pool1d(F.relu(self.conv(x)), 3).transpose(1, 2)
        found = {}
        for (name, (function, reads)), names in zip(self.heads.items(), self.names, strict=True):
            y = function(self, x, z, *(getattr(self, own) for own in names), *args[:reads])
            found[name] = y if y.dim() == 2 else y.mean(1) + y[:, -1]
        return found


def split(z):
    return z.unflatten(2, (H, D // H)).transpose(1, 2)


def joined(z):
    return z.transpose(1, 2).flatten(2)


def projected(m, z):
    return split(m.q(z)), split(m.k(z)), split(m.v(z))


def far():
    return (torch.arange(T)[:, None] - torch.arange(T)).abs() > 2


def float_mask(z):
    return torch.zeros(T, T, dtype=z.dtype).masked_fill(far(), -math.inf)


def alibi(z):
    slopes = torch.arange(1, H + 1).to(z.dtype)[:, None, None]
    return -slopes * (torch.arange(T)[:, None] - torch.arange(T)).abs() / 4


def relative(table):
    return table[torch.arange(T)[:, None] - torch.arange(T) + T - 1].permute(2, 0, 1)


def padding(x):
    """Tokens of which no letter is known."""
    return x.sum(1).unflatten(1, (T, 3)).sum(2) == 0


def by_kernel(mask):
    """``F.scaled_dot_product_attention`` under a mask, ``mask(x, z, *own)``."""
    return lambda m, x, z, *own: z + joined(F.scaled_dot_product_attention(*projected(m, z), attn_mask=mask(x, z, *own)))


def by_hand(mask):
    """Written out, ``mask(x, w, *own)`` being the masked scores."""

    def attend(m, x, z, *own):
        q, k, v = projected(m, z)
        return z + joined(mask(x, q @ k.transpose(-1, -2) / 2, *own).softmax(-1) @ v)

    return attend


def fused(unpack):
    """One projection of queries, keys and values: ``unpack(y)`` gives them from ``(B, T, 3 * D)``."""
    return lambda m, x, z: z + joined(F.scaled_dot_product_attention(*unpack(m.qkv(z))))


def five(y):
    return y.reshape(y.shape[0], y.shape[1], 3, H, D // H)


TABLE = lambda: nn.Parameter(torch.randn(2 * T - 1, H))  # noqa: E731
MASKS = {
    "causal": Head(lambda m, x, z: joined(F.scaled_dot_product_attention(*projected(m, z), is_causal=True))),
    "float": Head(by_kernel(lambda x, z: float_mask(z))),
    "float of all heads": Head(by_kernel(lambda x, z: float_mask(z).expand(H, T, T))),
    "float of one row": Head(by_kernel(lambda x, z: float_mask(z)[None, None])),
    "float expanded by len": Head(by_kernel(lambda x, z: float_mask(z).expand(len(x), H, T, T))),
    "float expanded by shape": Head(by_kernel(lambda x, z: float_mask(z)[None, None].expand(x.shape[0], H, -1, -1))),
    "float repeated": Head(by_kernel(lambda x, z: float_mask(z).repeat(len(x), H, 1, 1))),
    "triu": Head(by_kernel(lambda x, z: torch.full((T, T), -math.inf, dtype=z.dtype).triu(1))),
    "bool": Head(by_kernel(lambda x, z: ~far())),
    "bool expanded": Head(by_kernel(lambda x, z: (~far()).expand(len(x), H, T, T))),
    "tril": Head(by_kernel(lambda x, z: torch.ones(T, T, dtype=torch.bool).tril())),
    "alibi": Head(by_kernel(lambda x, z: alibi(z))),
    "alibi expanded": Head(by_kernel(lambda x, z: alibi(z).expand(len(x), -1, -1, -1))),
    "relative table": Head(by_kernel(lambda x, z, table: relative(table)), {"table": TABLE()}),
    "learned": Head(by_kernel(lambda x, z, bias: bias), {"bias": nn.Parameter(torch.randn(H, T, T))}),
    "of the sequence": Head(by_kernel(lambda x, z: (z @ z.transpose(1, 2))[:, None])),
    "padding": Head(by_kernel(lambda x, z: ~padding(x)[:, None, None])),
}
BY_HAND = {
    "bias": Head(by_hand(lambda x, w: w + alibi(w))),
    "bias of one row": Head(by_hand(lambda x, w: w + alibi(w)[None])),
    "triu": Head(by_hand(lambda x, w: w + torch.full((T, T), -math.inf, dtype=w.dtype).triu(1))),
    "masked_fill": Head(by_hand(lambda x, w: w.masked_fill(far(), -math.inf))),
    "tril": Head(by_hand(lambda x, w: w.masked_fill(torch.ones(T, T).tril().view(1, 1, T, T) == 0, -math.inf))),
    "expanded": Head(by_hand(lambda x, w: w.masked_fill(far().expand(len(x), H, T, T), -1e4))),
    "padding": Head(by_hand(lambda x, w: w.masked_fill(padding(x)[:, None, None], -math.inf))),
    "relative table": Head(by_hand(lambda x, w, table: w + relative(table)), {"table": TABLE()}),
    "baddbmm": Head(lambda m, x, z: torch.baddbmm(alibi(z)[:1], m.q(z), m.k(z).transpose(1, 2)).softmax(-1) @ m.v(z)),
    "heads in the batch": Head(
        lambda m, x, z: (lambda q, k, v: joined((torch.bmm(q, k.mT).softmax(-1) @ v).unflatten(0, (-1, H))))(
            *(t.flatten(0, 1) for t in projected(m, z))
        )
    ),
    "heads in front": Head(
        lambda m, x, z: (lambda q, k, v: ((q @ k.mT).softmax(-1) @ v).permute(1, 2, 0, 3).flatten(2))(
            *(part(z).unflatten(2, (H, -1)).permute(2, 0, 1, 3) for part in (m.q, m.k, m.v))
        )
    ),
    "einsum, length first": Head(
        lambda m, x, z: (lambda q, k, v: torch.einsum("bhij,jbhd->ibhd", torch.einsum("ibhd,jbhd->bhij", q, k).softmax(-1), v))(
            *m.qkv(z.transpose(0, 1)).view(T, len(z), H, -1).chunk(3, -1)
        ).reshape(T, len(z), D).transpose(0, 1)
    ),
}  # fmt: skip
FUSED = {
    "picked": Head(fused(lambda y: (lambda p: (p[0], p[1], p[2]))(five(y).permute(2, 0, 3, 1, 4)))),
    "unbound": Head(fused(lambda y: five(y).permute(2, 0, 3, 1, 4).unbind(0))),
    "unpacked and scaled": Head(fused(lambda y: (lambda q, k, v: (q * 0.5, k, v))(*five(y).permute(2, 0, 3, 1, 4).contiguous()))),
    "chunked": Head(fused(lambda y: [t.squeeze(0) for t in five(y).permute(2, 0, 3, 1, 4).chunk(3)])),
    "last": Head(fused(lambda y: y.view(len(y), T, H, D // H, 3).permute(4, 0, 2, 1, 3).unbind())),
    "moved": Head(fused(lambda y: [split(t) for t in y.unflatten(-1, (3, -1)).movedim(2, 0)])),
    "packed": Head(fused(lambda y: [t.transpose(1, 2) for t in five(y).unbind(2)])),
    "chunks of channels": Head(fused(lambda y: [split(t) for t in y.chunk(3, -1)])),
    "windows in the batch": Head(
        lambda m, x, z: joined(F.scaled_dot_product_attention(*(split(part(z.reshape(-1, 4, D))) for part in (m.q, m.k, m.v)))).view(-1, T, D)
    ),
}


def half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def angles(z, d):
    a = torch.arange(T).to(z.dtype)[:, None] / 100 ** (torch.arange(0, d, 2).to(z.dtype) / d)
    return torch.cat([a, a], -1)


def rotary(rotate):
    def attend(m, x, z):
        q, k, v = projected(m, z)
        return joined(F.scaled_dot_product_attention(rotate(q), rotate(k), v))

    return attend


def by_parts(like):
    """Some channels turned by ``cos`` and ``sin``, which are joined with what leaves the others as they are."""

    def rotate(t):
        a, ones = angles(t, 2), like(t)
        cos, sin = torch.cat([a.cos(), ones], -1), torch.cat([a.sin(), torch.zeros_like(ones)], -1)
        return t * cos + half(t) * sin

    return rotate


def by_batch(t):
    """Angles of positions that are numbered for each sequence."""
    a = torch.arange(T).expand(len(t), T)[:, None, :, None] * torch.linspace(0.1, 1, 4, dtype=t.dtype)
    return t * a.cos() + half(t) * a.sin()


def by_complex_numbers(t):
    a = torch.arange(T).to(t.dtype)[:, None] * torch.linspace(0.1, 1, 2, dtype=t.dtype)
    pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(a), a)).flatten(-2)


def length_first(m, x, z):
    y = m.qkv(z.transpose(0, 1)).view(T, len(z), H, -1)
    a = angles(z, D // H)[:, None, None]
    q, k, v = y.chunk(3, -1)
    q, k = q * a.cos() + half(q) * a.sin(), k * a.cos() + half(k) * a.sin()
    return joined(F.scaled_dot_product_attention(*(t.permute(1, 2, 0, 3) for t in (q, k, v))))


ROTARY = {
    "whole": Head(rotary(lambda t: t * angles(t, 4).cos() + half(t) * angles(t, 4).sin())),
    "some channels": Head(rotary(lambda t: torch.cat([t[..., :2] * angles(t, 2).cos() + half(t[..., :2]) * angles(t, 2).sin(), t[..., 2:]], -1))),
    "beside new_ones": Head(rotary(by_parts(lambda t: t.new_ones(T, 2)))),
    "beside ones_like": Head(rotary(by_parts(lambda t: torch.ones_like(t[0, 0, :, 2:])))),
    "beside zeros_like of one row": Head(rotary(by_parts(lambda t: torch.zeros_like(t[:1, :1, :, 2:])[0, 0] + 1))),
    "empty parts": Head(rotary(lambda t: torch.cat([t[..., :0], t * angles(t, 4).cos(), t[..., 4:]], -1))),
    "for each sequence": Head(rotary(by_batch)),
    "complex numbers": Head(rotary(by_complex_numbers)),
    "length first": Head(length_first),
    "a row of zeros before": Head(lambda m, x, z: torch.cat([z.new_zeros(1, 1, D).expand(len(z), 1, D), m.q(z)], 1)),
}


def multihead(batch_first, used=lambda found, z: found[0], **given):
    """``nn.MultiheadAttention`` with arguments that may be functions of letters and tokens."""

    def attend(m, x, z, attention):
        y = z if batch_first else z.transpose(0, 1)
        options = {key: value(x, z) if callable(value) else value for key, value in given.items()}
        found = used(attention(y, y, y, **options), y)
        return z + (found if batch_first else found.transpose(0, 1))

    return Head(attend, {"mha": nn.MultiheadAttention(D, H, batch_first=batch_first)})


def multihead_group(batch_first):
    causal = lambda x, z: torch.full((T, T), -math.inf, dtype=z.dtype).triu(1)  # noqa: E731
    build = lambda **given: multihead(batch_first, **given)  # noqa: E731
    return {
        "no weights": build(need_weights=False),
        "weights unread": build(),
        "weights read": build(used=lambda f, y: f[0] + (f[1] @ y if batch_first else (f[1] @ y.transpose(0, 1)).transpose(0, 1))),
        "weights of each head": build(average_attn_weights=False, used=lambda f, y: f[0] * f[1].amax((1, 2, 3)).view(-1, *[1] * batch_first, 1)),
        "mask": build(attn_mask=lambda x, z: far(), need_weights=False),
        "mask, weights": build(attn_mask=lambda x, z: far()),
        "causal": build(attn_mask=causal, is_causal=True, need_weights=False),
        "mask of each row": build(attn_mask=lambda x, z: far().expand(len(x) * H, T, T), need_weights=False),
        "mask of each row's own": build(attn_mask=lambda x, z: (z @ z.mT).repeat_interleave(H, 0), need_weights=False),
    }


def some(group, *names):
    return {name: group[name] for name in names}


def multihead_of_padding(batch_first):
    build = lambda **given: multihead(batch_first, **given)  # noqa: E731
    return {
        "padding": build(key_padding_mask=lambda x, z: padding(x), need_weights=False),
        "padding, weights": build(key_padding_mask=lambda x, z: padding(x)),
        "padding and mask": build(key_padding_mask=lambda x, z: padding(x), attn_mask=lambda x, z: torch.ones(T, T, dtype=torch.bool).triu(5)),
    }


def crossed(batch_first):
    def attend(m, x, z, attention, query):
        if batch_first:
            return attention(query.expand(len(z), -1, -1), z, z)[0]
        return attention(query.transpose(0, 1).expand(-1, len(z), -1), z.transpose(0, 1), z.transpose(0, 1))[0].transpose(0, 1)

    return Head(attend, {"mha": nn.MultiheadAttention(D, H, batch_first=batch_first), "query": nn.Parameter(torch.randn(1, 3, D))})


def other_multiheads():
    more = nn.MultiheadAttention(D, H, batch_first=True, add_bias_kv=True, add_zero_attn=True)
    sizes = nn.MultiheadAttention(D, H, kdim=4, vdim=6, batch_first=True)

    def in_windows(m, x, z, attention):
        y = z.unflatten(1, (2, 4)).flatten(0, 1)
        return attention(y, y, y, need_weights=False)[0].unflatten(0, (-1, 2)).flatten(1, 2)

    return {
        "more keys": Head(lambda m, x, z, attention: attention(z, z, z)[0], {"mha": more}),
        "other sizes": Head(lambda m, x, z, attention: attention(z, m.k(z)[..., :4], m.v(z)[..., :6])[0], {"mha": sizes}),
        "crossed": crossed(True),
        "crossed, length first": crossed(False),
        "in windows": Head(in_windows, {"mha": nn.MultiheadAttention(D, H, batch_first=True)}),
    }


def encoder(batch_first, layers, mask=None, pad=None, given=None, reads=0, **settings):
    def encode(m, x, z, module, *args):
        y, options = z if batch_first else z.transpose(0, 1), dict(given or {})
        if mask is not None:
            options["mask" if layers else "src_mask"] = mask(x, z)
        if pad is not None:
            options["src_key_padding_mask"] = pad(x, *args)
        y = module(y, **options)
        return y if batch_first else y.transpose(0, 1)

    made: nn.Module = nn.TransformerEncoderLayer(D, H, 6, batch_first=batch_first, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nested tensors, which not all settings have
        made = nn.TransformerEncoder(made, layers, norm=nn.LayerNorm(D) if layers > 1 else None) if layers else made
    return Head(encode, {"encoder": made}, reads)


def decoder(batch_first):
    def decode(m, x, z, module):
        y = z if batch_first else z.transpose(0, 1)
        y = module(y, y * 0.5, tgt_mask=nn.Transformer.generate_square_subsequent_mask(T).to(z.dtype))
        return y if batch_first else y.transpose(0, 1)

    return Head(decode, {"decoder": nn.TransformerDecoder(nn.TransformerDecoderLayer(D, H, 6, batch_first=batch_first), 1)})


def encoders(batch_first):
    window = lambda x, z: far()  # noqa: E731
    causal = lambda x, z: nn.Transformer.generate_square_subsequent_mask(T).to(z.dtype)  # noqa: E731
    return {
        "layer": encoder(batch_first, 0),
        "layer, norm first": encoder(batch_first, 0, norm_first=True, activation="gelu"),
        "layer, mask": encoder(batch_first, 0, mask=window),
        "layer, causal": encoder(batch_first, 0, mask=causal, given={"is_causal": True}),
        "encoder": encoder(batch_first, 2),
        "encoder, mask": encoder(batch_first, 1, mask=window),
        "encoder, causal": encoder(batch_first, 1, mask=causal),
        "decoder": decoder(batch_first),
    }


def padded_encoders(batch_first):
    window = lambda x, z: torch.ones(T, T, dtype=torch.bool).triu(5)  # noqa: E731
    return {
        "layer": encoder(batch_first, 0, pad=lambda x: padding(x)),
        "encoder": encoder(batch_first, 2, pad=lambda x: padding(x)),
        "encoder, norm first": encoder(batch_first, 1, pad=lambda x: padding(x), norm_first=True),
        "encoder, mask": encoder(batch_first, 1, mask=window, pad=lambda x: padding(x)),
        "encoder, given": encoder(batch_first, 1, pad=lambda x, known: known, reads=1),
        "layer, given": encoder(batch_first, 0, pad=lambda x, known: known, reads=1),
    }


def moved(function, **modules):
    """Without attention: a function of tokens with the length first, ``(T, B, D)``."""
    return Head(lambda m, x, z, *own: function(m, m.q(z.transpose(0, 1)), *own), modules)


MOVED = {
    "layer": moved(lambda m, y, norm: norm(y + F.gelu(m.k(y))).transpose(0, 1), norm=nn.LayerNorm(D)),
    "positions": moved(lambda m, y, pe: (y + pe[: y.size(0)]).permute(1, 0, 2), pe=nn.Parameter(torch.randn(2 * T, 1, D))),
    "positions expanded": moved(lambda m, y, pe: (y * pe.expand(T, y.shape[1], D)).transpose(0, 1), pe=nn.Parameter(torch.randn(T, 1, D))),
    "softmax over the length": moved(lambda m, y: (y * m.k(y).softmax(0)).sum(0)),
    "the last token": moved(lambda m, y: y[-1]),
    "mean": moved(lambda m, y: y.mean(0)),
    "maximum": moved(lambda m, y: y.max(0).values),
    "some tokens": moved(lambda m, y: F.pad(y, (0, 0, 0, 0, 1, 1)).flip(0)[[0, 3, 5]].transpose(0, 1)),
    "flattened": moved(lambda m, y, out: out(y.transpose(0, 1).reshape(y.shape[1], -1)), out=nn.Linear(T * D, D)),
    "sums and rows of zeros": moved(lambda m, y: torch.cat([y.cumsum(0), y.new_zeros(2, y.shape[1], D)]).transpose(0, 1)),
    "channels first": moved(lambda m, y: F.glu(y.permute(2, 0, 1), 0).permute(2, 1, 0)),
    "convolution": moved(lambda m, y, conv: conv(y.permute(1, 2, 0)).transpose(1, 2), conv=nn.Conv1d(D, D, 3, padding=1)),
    "a matrix for each head": moved(
        lambda m, y, w: torch.bmm(y.unflatten(2, (H, -1)).permute(2, 1, 0, 3).reshape(H, -1, D // H), w).view(H, -1, T, 3).permute(1, 2, 0, 3).flatten(2),
        w=nn.Parameter(torch.randn(H, D // H, 3)),
    ),
    "padded": Head(lambda m, x, z: (m.q(z.transpose(0, 1)) * padding(x).logical_not().T[:, :, None]).sum(0)),
    "an ensemble": Head(lambda m, x, z: (torch.stack([m.q(z), m.k(z), m.v(z)]).relu() * torch.arange(1, 4)[:, None, None, None]).sum(0)),
    "letters by number": Head(lambda m, x, z, table: table(x.argmax(1).T).transpose(0, 1)[:, ::3] + z, {"table": nn.Embedding(4, D)}),
    "both strands": Head(lambda m, x, z: sum(m.q(torch.cat([z, z.flip(1)]).transpose(0, 1)).softmax(0).transpose(0, 1).chunk(2))),
}

GROUPS = {
    "masks": MASKS,
    "by hand": BY_HAND,
    "fused": FUSED,
    "rotary": ROTARY,
    "multihead": multihead_group(True),
    "multihead, length first": some(multihead_group(False), "no weights", "weights read", "weights of each head", "mask of each row's own"),
    "multihead of padding": multihead_of_padding(True),
    "multihead of padding, length first": some(multihead_of_padding(False), "padding and mask"),
    "other multiheads": other_multiheads(),
    "encoders": encoders(True),
    "encoders, length first": some(encoders(False), "layer, norm first", "encoder, causal", "decoder"),
    "padded encoders": padded_encoders(True),
    "padded encoders, length first": some(padded_encoders(False), "layer", "encoder, given"),
    "moved": MOVED,
}
# one of each kind in float32, by itself
SINGLE = [("masks", "bool"), ("fused", "picked"), ("multihead", "no weights"), ("encoders", "encoder"), ("moved", "layer")]


def built(heads):
    torch.manual_seed(0)
    model = Model(heads).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


def padded_sequences(n, dtype=torch.float64):
    X = one_hot(n, 4, L, dtype=dtype)
    X[1, :, -7:] = 0  # two tokens and a letter of the one before
    return X


def known_padding(n):
    mask = torch.zeros(n, T, dtype=torch.bool)
    mask[0, -1] = mask[1, -3:] = True
    return mask


@torch.no_grad()
def row_by_row(model, X, args):
    """Naive ISM of one row at a time: the rows that are padded decide how PyTorch runs a batch."""
    rows = []
    for i in range(len(X)):
        given = [a[i : i + 1] for a in args]
        reference = model(X[i : i + 1], *given)
        new = {name: torch.zeros(4, L, *y.shape[1:], dtype=y.dtype) for name, y in reference.items()}
        for p in range(L):
            for c in range(4):
                if X[i, c, p] == 0:
                    mutant = X[i : i + 1].clone()
                    mutant[0, :, p], mutant[0, c, p] = 0, 1
                    for name, y in model(mutant, *given).items():
                        new[name][c, p] = (y - reference[name])[0]
        rows.append(new)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass
class Prepared:
    model: nn.Module
    args: tuple[torch.Tensor, ...]
    graph: Graph
    made: yuzu.Precomputation

    @property
    def layers(self):
        """Layer, its module of this file, family and windows, in the order in which they run."""
        rows = [(row.layer.split(" ")[0], row.handler, row.window) for row in self.made.layers]
        return [(name, name.split(".")[0], *rest) for name, *rest in rows]

    def scored(self, X):
        with no_warnings():
            return yuzu.yuzu_ism(self.model, X, self.made, args=self.args or None, output="delta", device="cpu")


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", yuzu.errors.YuzuWarning)
        yield


@functools.cache
def prepared(group):
    model = built(GROUPS[group]).double()
    args = (known_padding(2),) if "padded" in group else ()
    with capturing_once(), no_warnings():
        made = yuzu.precompute(model, L, args=args or None, device="cpu")
        graph = making.capture(model, (4, L))
    return Prepared(model, args, graph, made)


@pytest.mark.parametrize("group", GROUPS)
def test_attention_is_exact(group):
    case, X = prepared(group), padded_sequences(2)
    found, truth = case.scored(X), row_by_row(case.model, X, case.args)
    off = {name: error for name in truth if not (error := relative_error(found[name], truth[name])) < EXACT}
    assert not off
    assert all(truth[name].abs().max() > 1e-6 for name in truth), "a head that nothing reaches shows nothing"


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_runs_naively_and_projections_stay_windows(group):
    case = prepared(group)
    assert case.made.decisions.naive_model is None
    assert not [row for row in case.layers if row[2] == "naive"]
    whole = {module for _, module, _, windows in case.layers if windows.endswith("all")}
    assert not whole & {"conv", "q", "k", "v", "qkv"}
    for module in {module for _, module, *_ in case.layers if module.startswith(("mha", "encoder", "decoder"))}:
        windows = [row[3] for row in case.layers if row[1] == module and row[2] == "dense"]
        assert windows and not windows[0].endswith("all"), f"the first projection of {module}"


@pytest.mark.parametrize("group", GROUPS)
def test_graphs_with_the_batch_in_front_compute_what_the_model_does(group):
    """For batches of all sizes, also of those that other axes have."""
    case = prepared(group)
    for node in case.graph.nodes:
        if node.batched and node.shape is not None:
            assert batch_axes(node.shape) == [0] and node.shape[0] is None, f"{node.layer} {node.op} {node.shape}"
    run = Run(make_plan(case.graph), Weights(case.model, CPU), Derived(), CPU)
    for n in (1, 2, H, T, D):
        X = one_hot(n, 4, L, seed=n)
        args = tuple(a[:1].expand(n, *a.shape[1:]) for a in case.args)
        run.set_reference(X, args)
        with torch.no_grad():
            truth = case.model(X, *args)
        found = case.graph.rebuild([run.value(o) for o in case.graph.outputs])
        for name in truth:
            assert relative_error(found[name], truth[name]) < EXACT, name


@pytest.mark.parametrize(("group", "name"), SINGLE)
def test_attention_in_float32_is_as_exact_as_naive_ism(group, name):
    model = built({name: GROUPS[group][name]})
    X = one_hot(2, 4, L, dtype=torch.float32)
    with no_warnings():
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")[name]
    naive = yuzu.naive_ism(model, X, output="delta", device="cpu")[name]
    truth = row_by_row(model.double(), X.double(), ())[name]
    assert relative_error(found, truth) <= max(1e-5, relative_error(naive, truth))


def test_a_padded_encoder_reads_nothing_of_its_padding():
    found = prepared("padded encoders").scored(one_hot(2, 4, L))
    assert not found["encoder, given"][1, :, -7:].any() and found["encoder, given"][0, :, -7:].any()  # what no token but padded ones reads


def test_pytorchs_fast_paths_are_as_they_were():
    forwards = nn.TransformerEncoder.forward, nn.TransformerDecoder.forward
    model = built(padded_encoders(True))
    yuzu.precompute(model, L, args=(known_padding(2),), device="cpu")
    assert torch.backends.mha.get_fastpath_enabled()
    assert (nn.TransformerEncoder.forward, nn.TransformerDecoder.forward) == forwards
    assert not any("forward" in module.__dict__ for module in model.modules())


class Mixed(nn.Module):
    """What has no translation with the batch on another axis, between what has."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.q, self.out, self.between = nn.Conv1d(4, D, 5, padding=2), nn.Linear(D, D), nn.Linear(D, 2), between

    def forward(self, x):
        y = self.q(F.max_pool1d(self.conv(x), 3).permute(2, 0, 1))
        return self.out(self.between(y).relu().transpose(0, 1).mean(1))


@pytest.mark.parametrize(
    "between",
    [
        lambda y: y.sort(0).values,
        lambda y: torch.linalg.solve(y.transpose(0, 1) @ y.permute(1, 2, 0) + 9 * torch.eye(T, dtype=y.dtype), y.transpose(0, 1)).transpose(0, 1),
        lambda y: y - y.flatten(0, 1).mean(0) * 0 + y.reshape(T, -1).roll(D, 1).reshape(y.shape) * 0,
        lambda y: F.avg_pool1d(y.transpose(1, 2), 1).transpose(1, 2),
    ],
    ids=["sort", "solve", "a look at other rows", "pool along the batch"],
)
def test_what_cannot_be_translated_runs_naively(between):
    torch.manual_seed(0)
    model, X = Mixed(between).double().eval(), one_hot(2, 4, L)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = yuzu.yuzu_ism(model, X, output="delta", device="cpu")
    truth = row_by_row(lambda x: {"y": model(x)}, X, ())["y"]
    assert relative_error(found, truth) < EXACT
