"""The law for order statistics, Fourier transforms and matrices."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import yuzu  # noqa: F401  registers every handler
from tests.laws.bench import CHANNELS, bench, fn, laws_of


def order_cases() -> None:
    case = bench("along an axis")
    values = {
        "median": lambda x, d: x.median(d).values, "nanmedian": lambda x, d: x.nanmedian(d, keepdim=True).values, "kthvalue": lambda x, d: x.kthvalue(2, d)[0],
        "mode": lambda x, d: (9 * x).round().mode(d).values, "quantile": lambda x, d: x.quantile(0.3, d), "nanquantile": lambda x, d: x.nanquantile(0.7, d, keepdim=True),
        "sort": lambda x, d: x.sort(d).values, "topk": lambda x, d: x.topk(3, d).values.mean(d), "cummax": lambda x, d: x.cummax(d).values,
        "cummin": lambda x, d: x.cummin(d)[0], "nansum": lambda x, d: x.nansum(d), "count_nonzero": lambda x, d: x.relu().count_nonzero(d).double(),
        "norm": lambda x, d: F.pairwise_distance(x.movedim(d, -1), x.exp().movedim(d, -1)),
    }  # fmt: skip
    for name, function in values.items():
        only = {"only_double": name in ("mode", "count_nonzero")}
        case(f"{name} over channels", fn(lambda x, f=function: f(x, 1)), **only, **{name: "elementwise"})
        whole = {name: "whole values", "mean": "reduce", "_to_copy": "whole values"}
        case(f"{name} over positions", fn(lambda x, f=function: f(x, 2)), **only, **whole)
        case(f"{name} of n,L,C", fn(lambda x, f=function: f(x.transpose(1, 2), -1)), **only, **{name: "elementwise"})
    for name, function in {"max": torch.max, "min": torch.min, "median": torch.median, "sort": torch.sort, "cummax": torch.cummax}.items():
        case(f"both results of {name}", fn(lambda x, f=function: (lambda v: v[0] * v[1])(f(x, 1))), only_double=True, **{name: "elementwise"})
        case(f"places of {name}", fn(lambda x, f=function: f(x, 1)[1].double()), only_double=True, **{name: "elementwise"})
    case("places of topk", fn(lambda x: x.topk(2, 1).indices.double() + x.argsort(1)[:, :2]), only_double=True, topk="elementwise", sort="elementwise", argsort="elementwise")
    case("largest of rows", fn(lambda x: (lambda v, i: v + i)(*x.mean(2).max(1))), only_double=True, max="whole values")
    whole = {"var": "whole values", "std": "whole values", "linalg_vector_norm": "whole values", "clamp_min": "whole values", "div": "whole values", "mul": "merge",
             "sort": "whole values", "select": "whole values", "prod": "whole values"}  # fmt: skip
    composite = {
        "var_mean": lambda x, d: (lambda v, m: v * m)(*torch.var_mean(x, d)), "std_mean": lambda x, d: torch.std_mean(x, d, correction=0)[0],
        "aminmax": lambda x, d: (lambda lo, hi: hi - lo)(*torch.aminmax(x, dim=d)), "diff": lambda x, d: x.diff(dim=d, n=2),
        "cosine_similarity": lambda x, d: F.cosine_similarity(x, x.flip(d).exp(), dim=d), "nanmean": lambda x, d: x.nanmean(d),
        "trapezoid": lambda x, d: torch.trapezoid(x, dim=d), "take_along_dim": lambda x, d: torch.take_along_dim(x, torch.tensor([[[1, 0]]]).movedim(2, d).expand(len(x), -1, -1), d),
    }  # fmt: skip
    for name, function in composite.items():
        also = {"nansum": "whole values"} | ({"gather": "whole values"} if name == "take_along_dim" else {})
        counted = {"sum": "whole values"} if name == "nanmean" else {"sum": "reduce"}  # a sum of truth values counts
        case(f"{name} over positions", fn(lambda x, f=function: f(x, 2)), any="merge", **{**whole, **also, **counted})
        smallest = {"amin": "elementwise", "amax": "elementwise"} | ({"sum": "elementwise"} if name == "nanmean" else {})
        case(f"{name} over channels", fn(lambda x, f=function: f(x, 1)), any="merge", gather="view", **smallest)
    case("cosine similarity to prototypes", fn(lambda m, x: F.cosine_similarity(x.transpose(1, 2).unsqueeze(2), m.w, dim=-1), w=lambda: nn.Parameter(torch.randn(5, CHANNELS))))
    case("cosine similarity of rows", fn(lambda m, x: F.cosine_similarity(x.mean(2)[:, None], m.w, dim=-1), w=lambda: nn.Parameter(torch.randn(5, CHANNELS))))
    case("channel shuffle", fn(lambda x: F.channel_shuffle(x, 3).relu()))
    case("pixel shuffle", fn(lambda x: F.pixel_shuffle(x.unflatten(1, (6, 1)).repeat(1, 2, 4, 1), 2)))
    case("pixel unshuffle", fn(lambda x: F.pixel_unshuffle(x[:, None, :, 1:], 2)))
    case("stacks of one kind", fn(lambda x: (torch.hstack([x, x.relu()]), torch.dstack([x, x.exp()]), torch.column_stack([x.mean(2), x.amax(2)]))))
    case("tensordot", fn(lambda m, x: torch.tensordot(x, m.w, ([1], [1])), w=lambda: nn.Parameter(torch.randn(3, CHANNELS, 2))))
    case("tensordot over both", fn(lambda m, x: torch.tensordot(x, m.w, ([2, 1], [0, 1])), w=lambda: nn.Parameter(torch.randn(13, CHANNELS, 2))))
    case("inner", fn(lambda m, x: torch.inner(x.transpose(1, 2), m.w), w=lambda: nn.Parameter(torch.randn(3, CHANNELS))))
    case("inner with a vector", fn(lambda m, x: torch.inner(x.transpose(1, 2), m.w), w=lambda: nn.Parameter(torch.randn(CHANNELS))))
    case("written over", fn(lambda x: (_written(x, 0.5), _written(x, x[:, 1:3, 2:5].exp()))), any="merge", select="whole values")
    case("one channel written over", fn(lambda x: x.select_scatter(x[:, 1].exp(), 1, 4) + x.select_scatter(x[:, :, 1].exp(), 2, -1)), exp="elementwise|whole values", any="whole values")
    case("written over by a mask", fn(_without_negative))
    case("fast fourier transform of channels", fn(lambda x: torch.fft.rfft(x, dim=1).abs() + torch.fft.irfft(x.transpose(1, 2) * (1 + 2j), n=6).transpose(1, 2)[:, :4]),
         fft_rfft="dense", fft_irfft="dense")  # fmt: skip
    case("fast fourier transforms of positions", fn(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=26) * m.w, n=26)[..., :13] + torch.fft.fft(x).real + torch.fft.ifft(x).imag
         + torch.fft.hfft(x, n=13) + torch.fft.ihfft(x, n=24).real, w=lambda: torch.randn(CHANNELS, 14, dtype=torch.complex128)), any="whole values",
         **dict.fromkeys(["fft_rfft", "fft_irfft", "fft_fft", "fft_ifft", "fft_hfft", "fft_ihfft"], "dense"))  # fmt: skip

    case = bench("matrices and images")
    square = lambda x: x @ x.transpose(1, 2) + 5 * torch.eye(CHANNELS)  # noqa: E731
    matrices = {
        "det": torch.det, "logdet": torch.logdet, "inverse": torch.linalg.inv, "exponential": lambda x: torch.matrix_exp(x / 50), "singular": torch.linalg.svdvals,
        "eigenvalues": torch.linalg.eigvalsh, "cholesky": torch.linalg.cholesky, "solve": lambda x: torch.linalg.solve(x, x[:, :, :2].exp()), "norm": torch.linalg.matrix_norm,
        "nuclear": lambda x: torch.linalg.matrix_norm(x, ord="nuc"), "pinv": torch.linalg.pinv, "power": lambda x: torch.linalg.matrix_power(x, -2),
        "slogdet": lambda x: (lambda sign, value: sign * value)(*torch.linalg.slogdet(x)), "upper": torch.triu, "diagonal": lambda x: x.diagonal(dim1=-2, dim2=-1),
    }  # fmt: skip
    for name, function in matrices.items():
        case(f"{name} of products", fn(lambda x, f=function: f(square(x))), any="whole values|dense|reduce|merge|view|elementwise", matmul="whole values")
    case("matrices at positions", fn(lambda x: torch.matrix_exp(x.transpose(1, 2).unflatten(2, (1, 6)).repeat(1, 1, 6, 1) / 20)), repeat="view", any="elementwise", matrix_exp="elementwise",
         linalg_matrix_exp="elementwise")  # fmt: skip
    case("diagonal", fn(lambda x: x.diagonal(1, 1, 2) + x.diagonal(dim1=2, dim2=1, offset=-1)), any="whole values", diagonal="dense")
    case("diagonal matrix", fn(lambda x: x.mean(2).diag_embed() + x.mean(2).diag_embed(0, 2, 1)), diag_embed="dense")
    case("cross product", fn(lambda x: torch.linalg.cross(x[:, :3], x[:, 3:], dim=1)), linalg_cross="whole values")
    case("baddbmm", fn(lambda x: torch.baddbmm(x, x @ x.transpose(1, 2), x, beta=0.5)), any="whole values")
    case("bilinear of channels", fn(lambda m, x: m.f(x.transpose(1, 2), x.exp().transpose(1, 2)), f=lambda: nn.Bilinear(CHANNELS, CHANNELS, 2)), bilinear="elementwise")
    case("distances to points", fn(lambda m, x: torch.cdist(x.transpose(1, 2), m.w), w=lambda: torch.randn(5, CHANNELS, dtype=torch.float64)), cdist="elementwise")
    case("distances of rows", fn(lambda m, x: torch.cdist(x.mean(2), m.w), w=lambda: torch.randn(5, CHANNELS, dtype=torch.float64)), cdist="whole values")
    case("distances of one another", fn(lambda x: torch.cdist(x.transpose(1, 2), x.exp().transpose(1, 2))), cdist="whole values")
    case("between borders", fn(lambda m, x: torch.searchsorted(m.b, x).double() + torch.bucketize(x, m.b), b=lambda: torch.linspace(-1, 1, 5, dtype=torch.float64)), only_double=True)
    case("scatter", fn(lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0) * x), only_double=True)
    case("scatter add", fn(lambda m, x: x.new_zeros(len(x), 3, 13).scatter_add(1, m.i.expand(len(x), -1, 13), x), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])[None, :, None]))
    case("scatter maximum", fn(lambda m, x: x[:, :3].scatter_reduce(1, m.i.expand(len(x), -1, 13), x, "amax"), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])[None, :, None]))
    case("scatter over positions", fn(lambda m, x: x.scatter_add(2, m.i.expand(len(x), 6, -1), x.exp()), i=lambda: torch.tensor([[[3, 0, 5, 0]]])), scatter_add="whole values")
    case("index add", fn(lambda m, x: x.new_zeros(len(x), 3, 13).index_add(1, m.i, x), i=lambda: torch.tensor([0, 1, 2, 0, 1, 2])), index_add="whole values")
    case("index copy", fn(lambda x: x.index_copy(1, torch.tensor([0]), x[:, :1].relu()) + x.index_fill(2, torch.tensor([3, 0]), 0.5)), any="whole values")
    image = {"bilinear": (1, 2), "bicubic": (1, 2), "nearest": (2, 2), "nearest-exact": (1, 3)}
    for mode, scale in image.items():
        case(f"image resized by {mode}", fn(lambda x, mode=mode, s=scale: F.interpolate(x.unsqueeze(2), scale_factor=s, mode=mode)), any="dense")
    case("image resized smoothly", fn(lambda x: F.interpolate(x.unsqueeze(2), size=(1, 7), mode="bilinear", antialias=True) + F.interpolate(x.unsqueeze(2), size=(1, 7), mode="bicubic",
         antialias=True)), add="merge", any="dense")  # fmt: skip
    case("volume resized", fn(lambda x: F.interpolate(x[:, :, None, None], scale_factor=(1, 1, 2), mode="trilinear") + F.interpolate(x[:, :, None, None], scale_factor=(1, 1, 2))),
         add="merge", any="dense")  # fmt: skip
    for mode in ("nearest", "nearest-exact", "linear", "area"):
        for size in (1, 3, 13, 17, 26, 31):
            case(f"{mode} to {size}", fn(lambda x, m=mode, s=size: F.interpolate(x, size=s, mode=m).relu()), 5 if size < 20 else 0, mean="reduce",
                 adaptive_avg_pool1d="reduce" if size == 1 else "pool", **dict.fromkeys(["upsample_linear1d", "upsample_nearest1d", "_upsample_nearest_exact1d"], "view"))  # fmt: skip
        case(f"{mode} of whole values", fn(lambda x, m=mode: F.interpolate(x.softmax(2), size=17, mode=m)), softmax="elementwise|whole values",
             any="view|dense|reduce", adaptive_avg_pool1d="reduce")  # fmt: skip
    case("nearest by a factor that rounds", fn(lambda x: F.interpolate(x, scale_factor=1.6).relu()), upsample_nearest1d="view")
    case("nearest by a recomputed factor", fn(lambda x: F.interpolate(x, scale_factor=2.5, recompute_scale_factor=True).relu()), upsample_nearest1d="view")
    case("resized by nearest", fn(lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact").relu()), _upsample_nearest_exact1d="view")
    case("resized by linear", fn(lambda x: F.interpolate(x, size=20, mode="linear", align_corners=True)), upsample_linear1d="view")
    case("adaptive pools of images", fn(lambda x: F.adaptive_avg_pool2d(x.unsqueeze(2), (1, 4)) + F.adaptive_max_pool2d(x.unsqueeze(2), (1, 4))), add="merge", any="whole values", _adaptive_avg_pool2d="dense")
    case("adaptive pool to one", fn(lambda x: F.adaptive_avg_pool2d(x.unsqueeze(2), 1).flatten(1)))
    case("pools of volumes", fn(lambda x: F.avg_pool3d(x[:, :, None, None], (1, 1, 2)) + F.max_pool3d(x[:, :, None, None], (1, 1, 2)) + F.adaptive_avg_pool3d(x[:, :, None, None], (1, 1, 6))
         + F.adaptive_max_pool3d(x[:, :, None, None], (1, 1, 6))), any="whole values", avg_pool3d="dense", _adaptive_avg_pool3d="dense", add="merge")  # fmt: skip
    case("convolved volume", fn(lambda m, x: m.b(m.a(x[:, :, None, None])), a=lambda: nn.Conv3d(CHANNELS, 3, (1, 1, 3)), b=lambda: nn.ConvTranspose3d(3, 2, (1, 1, 3))),
         conv3d="whole values", conv_transpose3d="whole values")  # fmt: skip
    case("transposed convolution of an image", fn(lambda m, x: m.a(x.unsqueeze(2)), a=lambda: nn.ConvTranspose2d(CHANNELS, 3, (1, 3), stride=(1, 2))), conv_transpose2d="whole values")
    case("grid sample", fn(lambda m, x: F.grid_sample(x.unsqueeze(2), m.g.expand(len(x), -1, -1, -1), align_corners=False), g=lambda: 1.6 * torch.rand(1, 1, 7, 2, dtype=torch.float64) - 0.8),
         any="whole values")  # fmt: skip


def _written(x: torch.Tensor, value: Any) -> torch.Tensor:
    y = x.clone()
    y[:, 1:3, 2:5] = value
    y[:, :, -1] = 1.0
    return y


def _without_negative(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y < 0] = 0.1
    return y


(
    test_the_law_in_float64,
    test_the_law_in_float32,
    test_the_family_that_handles_it,
    test_what_does_not_read_the_reference,
) = laws_of(order_cases)
