"""Draw `how_it_works.png`: what the engine computes for one mutation, beside what naive ISM computes.

    python figs/draw_how_it_works.py

The cells that are filled come from the layers' own arithmetic, so that the picture and its counts are those
of the little model it shows: convolution of width 5, ReLU, max pooling by 2, convolution of width 3, linear.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Rectangle

SEQUENCE = "TGGCCACCAGGGGGCGCTAG"
MUTATED, CHANGED_TO = 9, "T"

INK, MUTED, LINE = "#222222", "#6b6b6b", "#b9b9b9"
REFERENCE, DELTA, NAIVE = "#c9d3df", "#e4572e", "#8d99ae"
ROW, CELL = 1.5, 0.62  # distance of two rows, height of a cell
PANELS = {"reference": 0.0, "delta": 24.0, "naive": 68.0}
NOTES = 45.2


@dataclass(frozen=True)
class Layer:
    """One row of the picture: the values after a layer.

    Attributes
    ----------
    name : str
        The text at the left.
    length : int
        Positions after the layer.
    window : tuple of two ints
        The first changed position and the one after the last.
    scale : int
        Positions of the sequence that one position of this row stands for.
    linear : bool or None
        Whether the layer acts on differences directly; None for the sequence itself.
    """

    name: str
    length: int
    window: tuple[int, int]
    scale: int
    linear: bool | None


def small_model() -> list[Layer]:
    """The layers of the model in the picture, with the window of one mutation at each."""
    length, start, end, scale = len(SEQUENCE), MUTATED, MUTATED + 1, 1
    layers = [Layer("sequence", length, (start, end), scale, None)]
    start, end = start - 2, end + 2
    layers.append(Layer("convolution,\nwidth 5", length, (start, end), scale, True))
    layers.append(Layer("ReLU", length, (start, end), scale, False))
    length, start, end, scale = length // 2, start // 2, -(-end // 2), scale * 2
    layers.append(Layer("max pooling\nby 2", length, (start, end), scale, False))
    start, end = start - 1, end + 1
    layers.append(Layer("convolution,\nwidth 3", length, (start, end), scale, True))
    layers.append(Layer("flatten\nand linear", 1, (0, 1), len(SEQUENCE), True))
    return layers


def row_y(row: int) -> float:
    return -ROW * row


def draw_row(ax: Axes, x: float, row: int, layer: Layer, filled: range, color: str) -> None:
    """One row of cells, of which `filled` are coloured and the others are empty outlines."""
    if layer.length == 1:
        middle = x + len(SEQUENCE) / 2
        ax.add_patch(Rectangle((middle - 0.8, row_y(row)), 1.6, CELL, facecolor=color, edgecolor="white"))
        return
    for cell in range(layer.length):
        ax.add_patch(
            Rectangle(
                (x + cell * layer.scale + 0.06, row_y(row)),
                layer.scale - 0.12,
                CELL,
                facecolor=color if cell in filled else "white",
                edgecolor=color if cell in filled else LINE,
                linewidth=0.7,
            )
        )


def write_sequence(ax: Axes, x: float, mutated: bool, only_mutation: bool, plain: str) -> None:
    """The letters of the first row: the whole sequence, or only the letter that changed."""
    for position, letter in enumerate(SEQUENCE):
        here = mutated and position == MUTATED
        if only_mutation and not here:
            continue
        ax.text(
            x + position + 0.5,
            row_y(0) + CELL / 2 - 0.02,
            CHANGED_TO if here else letter,
            color="white" if here else plain,
            weight="bold" if here else "normal",
            family="monospace",
            fontsize=11,
            ha="center",
            va="center",
        )


def draw_funnel(ax: Axes, x: float, layers: list[Layer], color: str) -> None:
    """Lines that join the windows of neighbouring rows, to show how they widen."""
    for row in range(1, len(layers)):
        above, here = layers[row - 1], layers[row]
        top, bottom = row_y(row - 1) - 0.06, row_y(row) + CELL + 0.06
        middle = x + len(SEQUENCE) / 2
        lower = [x + edge * here.scale for edge in here.window]
        if here.length == 1:
            lower = [middle - 0.8, middle + 0.8]
        upper = [x + edge * above.scale for edge in above.window]
        corners = [upper[0], upper[1], lower[1], lower[0]]
        ax.fill(corners, [top, top, bottom, bottom], color=color, alpha=0.16, linewidth=0)


def draw_reference(ax: Axes, layers: list[Layer]) -> None:
    x = PANELS["reference"]
    for row, layer in enumerate(layers):
        draw_row(ax, x, row, layer, range(layer.length), REFERENCE)
    write_sequence(ax, x, mutated=False, only_mutation=False, plain=INK)


def draw_delta(ax: Axes, layers: list[Layer]) -> None:
    x = PANELS["delta"]
    draw_funnel(ax, x, layers, DELTA)
    for row, layer in enumerate(layers):
        draw_row(ax, x, row, layer, range(*layer.window), DELTA)
        if layer.linear is False:
            # The non-linear layer reads the reference at the positions under its result's window.
            first, last = (edge * layer.scale for edge in layer.window)
            y = row_y(row - 1)
            ax.add_patch(
                Rectangle(
                    (PANELS["reference"] + first - 0.08, y - 0.1),
                    last - first + 0.16,
                    CELL + 0.2,
                    fill=False,
                    edgecolor=INK,
                    linewidth=1.3,
                )
            )
            ax.add_patch(
                FancyArrowPatch(
                    (PANELS["reference"] + last + 0.1, y - 0.12),
                    (x + layer.window[0] * layer.scale - 0.2, row_y(row) + CELL / 2),
                    connectionstyle="arc3,rad=0.04",
                    arrowstyle="-|>",
                    mutation_scale=11,
                    color=INK,
                    linewidth=1.1,
                )
            )
    write_sequence(ax, x, mutated=True, only_mutation=True, plain=INK)


def draw_naive(ax: Axes, layers: list[Layer]) -> None:
    x = PANELS["naive"]
    for row, layer in enumerate(layers):
        draw_row(ax, x, row, layer, range(layer.length), NAIVE)
    ax.add_patch(Rectangle((x + MUTATED + 0.06, row_y(0)), 0.88, CELL, facecolor=DELTA, edgecolor=DELTA))
    write_sequence(ax, x, mutated=True, only_mutation=False, plain="white")


def write_notes(ax: Axes, layers: list[Layer]) -> None:
    """Write beside the differences what happens in each layer."""
    notes = {
        0: "one letter differs",
        1: "linear: needs D alone;\nthe window grows by 4",
        2: "not linear: f(R + D) $-$ f(R)\non the window, R from the\nreference pass",
        3: "the same, on the pools\nthat the window touches",
        4: "linear again; the window\ngrows by 2",
        5: "only the weights under\nthe window are used",
    }
    for row, note in notes.items():
        ax.text(NOTES, row_y(row) + CELL / 2, note, fontsize=11.5, color=INK, va="center", linespacing=1.15)
    for row, layer in enumerate(layers):
        ax.text(-1.0, row_y(row) + CELL / 2, layer.name, fontsize=12, color=INK, ha="right", va="center")


def write_titles(ax: Axes, layers: list[Layer]) -> None:
    middle = len(SEQUENCE) / 2
    every = sum(layer.length for layer in layers[1:])
    window = sum(end - start for start, end in (layer.window for layer in layers[1:]))
    mutants = 3 * len(SEQUENCE)
    columns = [
        ("reference", "1  Reference, R", "every layer, run once", f"{every} cells, once"),
        (
            "delta",
            "2  Difference, D",
            f"for each of the {mutants} mutants",
            f"{window} cells a mutant",
        ),
        (
            "naive",
            "Naive ISM",
            f"all layers, {mutants} mutants",
            f"{every} cells a mutant",
        ),
    ]
    for panel, title, subtitle, count in columns:
        x = PANELS[panel] + middle
        ax.text(x, 2.35, title, fontsize=14, weight="bold", color=INK, ha="center", va="center")
        ax.text(x, 1.6, subtitle, fontsize=12, color=MUTED, ha="center", va="center")
        ax.text(x, row_y(len(layers)) + 0.25, count, fontsize=12, color=INK, ha="center", va="center")
    ax.text(
        NOTES,
        row_y(len(layers)) + 0.25,
        "score: D itself, or its norm",
        fontsize=11.5,
        color=INK,
        va="center",
    )
    ax.plot([66, 66], [2.7, row_y(len(layers)) - 0.2], color=LINE, linewidth=1)


def draw() -> plt.Figure:
    layers = small_model()
    figure = plt.figure(figsize=(12.2, 6.0))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    draw_reference(ax, layers)
    draw_delta(ax, layers)
    draw_naive(ax, layers)
    write_notes(ax, layers)
    write_titles(ax, layers)
    ax.set_xlim(-10.5, 89)
    ax.set_ylim(row_y(len(layers)) - 0.45, 2.95)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("how_it_works.png"))
    arguments = parser.parse_args()
    draw().savefig(arguments.out, dpi=150, facecolor="white")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
