"""Train the classifier of CTCF against PU.1 binding sites that ships with yuzu.

    python tutorials/train_ctcf_model.py [--ctcf ctcf.fa.gz] [--pu1 pu1.fa.gz] [--out yuzu/data]

Both files are FASTA, plain or gzipped: peak centres of one length, with headers that start with the
chromosome ("chr1:100-200"). All peaks of chromosome 1 are held out. Training uses equal numbers of both
classes, turns half of the sequences round (reverse complement) at every step, and smooths the labels a
little, which keeps the logits of easy sequences from growing without end. Writes the weights and forty of
the held-out peaks; exits with an error if the held-out accuracy is below --min-accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from yuzu.examples import MODEL_FILE, PEAKS_FILE, CTCFClassifier
from yuzu.sequence import one_hot_encode, read_fasta

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

LABEL_SMOOTHING = 0.05
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
N_CTCF, N_PU1 = 30, 10  # held-out peaks that ship


class Peaks(NamedTuple):
    names: list[str]
    sequences: list[str]


class Split(NamedTuple):
    X: torch.Tensor  # (n, 4, L), as many of either class
    y: torch.Tensor  # (n,), 1 for CTCF


def read_peaks(path: Path, held_out: set[str]) -> tuple[Peaks, Peaks]:
    """The peaks of a FASTA file: those to train on, and those on the held-out chromosomes."""
    if not path.exists():
        sys.exit(f"{path} is not there: give the FASTA files of the peaks with --ctcf and --pu1")
    parts = Peaks([], []), Peaks([], [])
    for name, sequence in zip(*read_fasta(path), strict=True):
        part = parts[name.split(":")[0] in held_out]
        part.names.append(name)
        part.sequences.append(sequence.upper())
    if not parts[0].names or not parts[1].names:
        sys.exit(f"{path} needs peaks both on and off the held-out chromosomes {sorted(held_out)}")
    return parts


def balance(ctcf: Peaks, pu1: Peaks, generator: torch.Generator) -> Split:
    """As many peaks of either class as the smaller class has, drawn at random."""
    size = min(len(ctcf.names), len(pu1.names))
    drawn = []
    for peaks in (ctcf, pu1):
        X = one_hot_encode(peaks.sequences)
        drawn.append(X[torch.randperm(len(X), generator=generator)[:size]])
    return Split(torch.cat(drawn), torch.cat([torch.ones(size), torch.zeros(size)]))


def train(data: Split, epochs: int, batch_size: int, generator: torch.Generator) -> CTCFClassifier:
    """Fit the classifier with AdamW and a one-cycle learning rate."""
    model = CTCFClassifier().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = max(1, len(data.X) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    targets = data.y * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / 2
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(data.X), generator=generator)[: batches * batch_size].chunk(batches):
            X = data.X[rows]
            # With the channels in the order ACGT, turning both axes round is the reverse complement.
            turned = torch.rand(len(rows), generator=generator) < 0.5
            X = torch.where(turned[:, None, None], X.flip(1, 2), X)
            loss = binary_cross_entropy_with_logits(model(X)[:, 0], targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {total / batches:.4f}, {seconds:.1f} s", flush=True)
    return model.eval()


def accuracy(model: CTCFClassifier, data: Split) -> float:
    """The share of sequences on the right side of a logit of 0."""
    with torch.inference_mode():
        logits = torch.cat([model(X)[:, 0] for X in data.X.split(1024)])
    return ((logits > 0) == (data.y > 0.5)).double().mean().item()


def write_peaks(path: Path, ctcf: Peaks, pu1: Peaks, generator: torch.Generator) -> None:
    """Write a random draw of the held-out peaks as FASTA, with "coordinates factor" as headers."""
    with open(path, "w", encoding="ascii") as file:
        for factor, peaks, count in (("CTCF", ctcf, N_CTCF), ("PU.1", pu1, N_PU1)):
            rows = torch.randperm(len(peaks.names), generator=generator)[:count].tolist()
            for row in rows:
                file.write(f">{peaks.names[row].split()[0]} {factor}\n{peaks.sequences[row]}\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ctcf", type=Path, default=SHARED / "ctcf.fa.gz", help="CTCF peaks (%(default)s)")
    parser.add_argument("--pu1", type=Path, default=SHARED / "pu1.fa.gz", help="PU.1 peaks (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "yuzu" / "data", help="folder (%(default)s)")
    parser.add_argument("--held-out", nargs="+", default=["chr1"], help="chromosomes (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--min-accuracy", type=float, default=0.96, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # With more threads oneDNN adds up the gradients in no fixed order, use_deterministic_algorithms or not.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    held_out = set(arguments.held_out)
    ctcf, ctcf_held = read_peaks(arguments.ctcf, held_out)
    pu1, pu1_held = read_peaks(arguments.pu1, held_out)
    data, test = balance(ctcf, pu1, generator), balance(ctcf_held, pu1_held, generator)
    print(f"{len(data.X)} sequences to train on, {len(test.X)} held out ({', '.join(sorted(held_out))})")

    model = train(data, arguments.epochs, arguments.batch_size, generator)
    reached = accuracy(model, test)
    print(f"held-out accuracy {reached:.4f}")
    if reached < arguments.min_accuracy:
        sys.exit(f"held-out accuracy {reached:.4f} is below {arguments.min_accuracy}: nothing written")

    arguments.out.mkdir(parents=True, exist_ok=True)
    # BatchNorm's integer step counters are left out: evaluation does not need them.
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    save_file(weights, arguments.out / MODEL_FILE, metadata={"held_out_accuracy": f"{reached:.4f}"})
    # safetensors makes files that only their owner can read.
    (arguments.out / MODEL_FILE).chmod(0o644)
    write_peaks(arguments.out / PEAKS_FILE, ctcf_held, pu1_held, generator)
    print(f"wrote {MODEL_FILE} and {PEAKS_FILE} to {arguments.out}")


if __name__ == "__main__":
    main()
