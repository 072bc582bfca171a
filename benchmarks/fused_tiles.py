"""Times tiles of the fused kernel on layers of BPNet (64 filters) and ChromBPNet (512) on the GPU at hand.

    python benchmarks/fused_tiles.py

For each layer and precision the tiles that were tried, the fastest first: milliseconds, useful operations, and bytes of
the windows before and after. `tile_of` in ``yuzu/_engine/kernels/fused.py`` has what was found. ``--part i n``
runs every n-th trial only, and prints nothing: several processes so compile the kernels for a run after them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yuzu._engine.kernels.fused import After, BeforeReLU, Form, Residual, Tile, convolve, spans_of

EDITS, LENGTH = 3, 2114
LAYERS = {  # channels, sites, width before, dilation
    "BPNet, dilation 8": (64, 4000, 33, 8),
    "BPNet, dilation 256": (64, 400, 529, 256),
    "ChromBPNet, dilation 16": (512, 400, 49, 16),
    "ChromBPNet, dilation 128": (512, 160, 273, 128),
}
TILES = {  # rows, columns, depth, warps, stages, parts
    (64, "high"): [(128, 64, 32, 4, 3, 2), (128, 64, 32, 4, 2, 2), (64, 64, 32, 4, 3, 2), (128, 64, 64, 4, 2, 2)],
    (64, "medium"): [(128, 64, 64, 4, 3, 2), (128, 64, 64, 4, 2, 2), (64, 64, 64, 4, 3, 2), (128, 64, 64, 8, 3, 2)],
    (64, "highest"): [(128, 64, 32, 4, 2, 2), (64, 64, 32, 4, 3, 2), (128, 64, 32, 8, 2, 2)],
    (512, "high"): [
        (128, 128, 32, 4, 3, 4),
        (128, 128, 32, 8, 3, 2),
        (128, 256, 32, 8, 3, 4),
        (128, 256, 32, 8, 4, 4),
        (256, 128, 32, 8, 3, 4),
    ],
    (512, "medium"): [
        (128, 128, 64, 8, 3, 2),
        (128, 256, 64, 8, 3, 4),
        (128, 256, 64, 8, 4, 4),
        (256, 128, 64, 8, 3, 4),
        (128, 128, 64, 4, 3, 4),
    ],
    (512, "highest"): [
        (64, 128, 32, 4, 3, 2),
        (128, 128, 32, 8, 2, 2),
        (128, 128, 32, 8, 3, 2),
        (128, 64, 32, 8, 3, 2),
    ],
}


def milliseconds(work, repeats: int = 5) -> float:
    """The least of some runs after one."""
    work()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return min(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))


def layer(channels: int, sites: int, held: int, dilation: int, precision: str):
    """A function that runs a residual layer with a tile; its useful multiply-adds, and its bytes."""
    dtype = torch.bfloat16 if precision == "medium" else torch.float32
    width, device = held + 2 * dilation, "cuda"
    x = torch.randn(sites * EDITS, held, channels, device=device).to(dtype)
    weight = (torch.randn(3, channels, channels, device=device) / (3 * channels) ** 0.5).to(dtype)
    reference = torch.randn(1, LENGTH, channels, device=device)
    numbers = torch.arange(sites, dtype=torch.int32, device=device)
    relu = BeforeReLU(reference, numbers % (LENGTH - width))
    residual = Residual(x, torch.full_like(numbers, -dilation))
    first = torch.full_like(numbers, -2 * dilation)
    spans = spans_of(width, held, 3, dilation, -2 * dilation)

    def work(tile: Tile) -> torch.Tensor:
        form = Form(EDITS, width, dilation, spans=spans)
        return convolve(x, weight, first, form, precision, After(relu, residual), tile)

    multiply_adds = x.shape[0] * held * 3 * channels**2
    return work, multiply_adds, x.shape[0] * (held + width) * channels * x.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), metavar=("I", "N"))
    parser.add_argument("--only", nargs="+", default=list(LAYERS), metavar="LAYER")
    part, parts = (options := parser.parse_args()).part
    if parts == 1:
        print(torch.cuda.get_device_name())
    number = 0
    for name in options.only:
        channels, *sizes = LAYERS[name]
        for precision in ("high", "medium", "highest"):
            work, multiply_adds, moved = layer(channels, *sizes, precision)
            found = []
            for numbers in TILES[channels, precision]:
                number += 1
                if number % parts == part:
                    tile = Tile(*numbers)
                    found.append((milliseconds(lambda work=work, tile=tile: work(tile)), numbers))
            if parts == 1:
                print(f"{name}, {precision}: {multiply_adds / 1e9:.1f} G multiply-adds, {moved / 1e9:.2f} GB")
                for ms, numbers in sorted(found):
                    rate, bandwidth = 2 * multiply_adds / ms / 1e9, moved / ms / 1e9
                    print(f"    {ms:.3f} ms  {rate:4.0f} TFLOP/s  {bandwidth:.2f} TB/s  {numbers}", flush=True)


if __name__ == "__main__":
    main()
