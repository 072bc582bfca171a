"""Variants by brute force, written without the library: edited chromosomes, whole sequences, SciPy's distance."""

import copy
import random

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def chromosome(length, seed=0, letters="ACGT"):
    rng = random.Random(seed)
    return "".join(rng.choice(letters) for _ in range(length))


def edited(text, pos, ref, alt):
    """A chromosome with a variant in it."""
    assert text[pos : pos + len(ref)] == ref
    return text[:pos] + alt + text[pos + len(ref) :]


def spelling(text, pos, ref, alt):
    """The leftmost spelling: all that both chromosomes share is taken off, first at the right."""
    other = edited(text, pos, ref, alt)
    most, end = min(len(text), len(other)), 0
    while end < most and text[-1 - end] == other[-1 - end]:
        end += 1
    begin = 0
    while begin < most - end and text[begin] == other[begin]:
        begin += 1
    return begin, text[begin : len(text) - end], other[begin : len(other) - end]


def pair(text, variant, length, side="left"):
    """The sequences of both alleles."""
    pos, ref, alt = spelling(text, *variant)
    start, other = pos - length // 2, edited(text, *variant)
    begin = start if side == "left" else start + len(other) - len(text)
    return text[start : start + length], other[begin : begin + length]


def one_hot(texts, alphabet="ACGT"):
    return torch.tensor([[[float(letter == a) for letter in text] for a in alphabet] for text in texts], dtype=torch.float64)


def outputs(model, texts, alphabet="ACGT", args=(), dtype=torch.float64):
    """The model's outputs in float64, each sequence alone."""
    model = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        rows = [model(one_hot([text], alphabet).to(dtype), *(a[i : i + 1].to(dtype) for a in args)) for i, text in enumerate(texts)]
    if isinstance(rows[0], torch.Tensor):
        return torch.cat(rows).double()
    return tuple(torch.cat(leaf).double() for leaf in zip(*rows, strict=True))


def turned(text):
    return text.translate(COMPLEMENT)[::-1]


def distance(before, after, ref="", alt="", side="left"):
    """variant-scorer's: softmaxes of profiles ``(strands, length)``, without the positions of an indel."""
    p, q = (np.exp(x - x.max()) for x in (before.numpy(), after.numpy()))
    p, q = p / p.sum(), q / q.sum()
    if len(ref) != len(alt):
        middle = p.shape[1] // 2
        there = middle if side == "left" else middle + len(ref) - len(alt)
        p, q = np.delete(p, range(middle, middle + len(ref)), 1), np.delete(q, range(there, there + len(alt)), 1)
        keep = min(p.shape[1], q.shape[1])
        p, q = (x[:, :keep] if side == "left" else x[:, x.shape[1] - keep :] for x in (p, q))
    return jensenshannon(p.reshape(-1), q.reshape(-1), base=2)


class Heads(torch.nn.Module):
    """A profile of some strands, cropped, and log counts."""

    def __init__(self, strands=2, crop=6):
        super().__init__()
        self.crop = crop
        self.first = torch.nn.Conv1d(4, 6, 7, padding=3)
        self.second = torch.nn.Conv1d(6, 6, 3, padding=4, dilation=4)
        self.profile = torch.nn.Conv1d(6, strands, 5, padding=2)
        self.counts = torch.nn.Linear(6, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        return 3 * self.profile(x)[:, :, self.crop : -self.crop], 2 * self.counts(x.mean(2))


def log_counts(output):
    return output[1]


def profile(output):
    return output[0]
