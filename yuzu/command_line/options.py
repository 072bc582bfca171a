"""The commands, their options and the text of ``--help``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yuzu._engine.alphabets import DNA, LUA_DNA, PROTEIN, RNA
from yuzu._engine.checks import OUTPUTS
from yuzu._engine.settings import PRECISIONS
from yuzu._engine.version import __version__
from yuzu.runs.submission import CLUSTERS
from yuzu.variants.places import SIDES
from yuzu.variants.reading import SCHEMAS

ALPHABETS = {"dna": DNA, "agct": LUA_DNA, "rna": RNA, "protein": PROTEIN}


EXAMPLES = """
examples:
  yuzu precompute --model net.py:build --fasta peaks.fa --out net.yuzu
  yuzu ism --model net.py:build --weights net.pt --fasta peaks.fa --out scores.h5 \\
      --precomputation net.yuzu --target 0
  yuzu ism --model package.module:Net --weights net.safetensors --fasta peaks.fa \\
      --out scores.h5 --device cuda
  yuzu ism --model net.py:build --regions peaks.narrowPeak --genome hg38.fa --width 2114 \\
      --out scores.h5
  yuzu variants --model net.py:build --weights fold0.pt fold1.pt --variants some.vcf.gz \\
      --genome hg38.fa --width 2114 --scores logfc jsd --counts 1 --profile 0 --out scores.tsv

net.py:build is a file and a function (or class) in it, which is called without arguments
and returns the model. The weights are a state_dict, saved by torch.save or as safetensors.
Sequences must all have one length. Regions are BED or narrowPeak, windows of --width on
their summits. Those that run over a chromosome's end are left out, with a warning.

scores.h5 holds `scores` (n, C, end - start, ...), `sequences` (n, C, L), `names` (n,) and
`done` (n,). Each has an attribute `description`. For --fasta `names` are the headers.

For --regions each row has two things: the window that was scored, --width letters on the
summit, and the peak, the line of the file that it was made for. They differ where the peak
has another length, or a summit beside its middle.
  window  `names` (chromosome:start-end), `chrom`, `start`, `end`, `strand` (- where
          --reverse-complement turned it)
  peak    `peak_name`, `peak_start`, `peak_end`, `peak_strand`, `summit`
Starts and summits are 0-based positions on the chromosome, ends are not included. Two files
have the same rows in the same order: scores.h5.bed the peaks' own lines, as fi-nemo and
others read them, and scores.h5.windows.bed, with the columns chrom, start, end, peak_name,
0, strand, peak_start, peak_end, summit.

A name that ends in .zarr makes a store of scores, labelled for xarray, for any number of
workers: yuzu ism ... --out scores.zarr --workers 4. The status is 0 when it is complete, and 3
when it is, but for sequences that failed. yuzu status scores.zarr tells how far it is.

yuzu variants writes a row for each alternative allele, in the file's order: chrom, pos (from
0), ref, alt (- for none), id, status (ok, or why it is not scored), and a column a score.

An interrupted job goes on where it stopped when it is started again with the same
arguments. A file of an older version gets the columns that it lacks.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command ``yuzu``, with all commands and their options.

    Examples
    --------
    >>> options = parser().parse_args(["precompute", "--model", "net.py:build", "--length", "500", "--out", "net.yuzu"])
    >>> options.command, options.length
    ('precompute', 500)
    """
    made = argparse.ArgumentParser(
        prog="yuzu",
        description="Exact, fast in-silico saturation mutagenesis of PyTorch sequence models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="{ism,precompute,variants,status,export}")
    settings: dict[str, Any] = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    ism = commands.add_parser("ism", help="score every substitution of every sequence", **settings)
    precompute = commands.add_parser("precompute", help="plan once for a model and a length, and keep it", **settings)
    variants = commands.add_parser("variants", help="score the variants of a VCF file or a table", **settings)
    status = commands.add_parser("status", help="tell how far a run is")
    status.add_argument("path", type=Path, metavar="FILE.zarr", help="its scores")
    export = commands.add_parser("export", help="write a run's scores for other programs")
    export.add_argument("path", type=Path, metavar="FILE.zarr", help="its scores")
    export.add_argument("--modisco", type=Path, metavar="PATH", help="TF-MoDISco's PATH.ohe.npz and PATH.attr.npz")
    export.add_argument("--bigwig", type=Path, metavar="FILE.bw", help="scores at the letters of the sequence")
    export.add_argument("--bed", type=Path, metavar="FILE", help="the peaks, a line for each row of the other files")
    export.add_argument("--numpy", type=Path, metavar="FILE.npy", help="the scores as they are")
    export.add_argument("--target", type=int, metavar="I", help="the output for --modisco and --bigwig, of several")
    export.add_argument("--sizes", type=Path, metavar="FILE", help="chrom.sizes or .fai; default: of the run's genome")
    for command in (ism, precompute, variants):
        command.add_argument("--model", required=True, metavar="FILE.py:NAME", help="or MODULE:NAME; makes the model")
        alphabets = ["dna", "agct"] if command is variants else list(ALPHABETS)
        command.add_argument("--alphabet", default="dna", choices=alphabets, help="default: dna, ACGT")
        command.add_argument("--device", help="default: cuda where there is one, else cpu")
    precompute.add_argument("--weights", type=Path, metavar="FILE", help="its state_dict: .pt, .pth or .safetensors")
    ism.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="its state_dict: .pt, .pth or .safetensors; of several folds scores are averaged, and each kept",
    )
    _add_variants(variants)
    ism.add_argument("--fasta", type=Path, metavar="FILE", help="sequences of one length, also gzipped")
    ism.add_argument("--regions", type=Path, metavar="FILE", help="or BED or narrowPeak, with --genome")
    ism.add_argument("--genome", type=Path, metavar="FILE", help="FASTA that --regions are of")
    ism.add_argument("--width", type=int, metavar="L", help="length of windows on the summits; default: the regions'")
    ism.add_argument("--reverse-complement", action="store_true", help="of --regions on the minus strand")
    ism.add_argument("--max-unknown", type=float, help="largest share of N in --regions; default: 1, any")
    ism.add_argument(
        "--out", required=True, type=Path, metavar="FILE.h5|.zarr", help="scores; goes on with an unfinished one"
    )
    ism.add_argument("--precomputation", type=Path, metavar="FILE", help="made by yuzu precompute; default: made anew")
    ism.add_argument("--head", metavar="NAME_OR_INDEX", help="the element of the model's output to score; default: all")
    ism.add_argument(
        "--func", metavar="FILE.py:NAME", help="or a function of the model's output that gives what to score"
    )
    ism.add_argument(
        "--args", type=Path, metavar="FILE.npz", help="the model's other inputs, a row for each sequence given"
    )
    ism.add_argument("--target", type=int, help="the output to score, of those; default: all")
    ism.add_argument("--batch-size", type=int, metavar="N", help="sequences carried at once, at most; default: picked")
    ism.add_argument(
        "--output",
        default="l2",
        choices=[*OUTPUTS, "hypothetical"],
        help="l2: norm over the outputs (default); delta: mutant minus reference; prediction; hypothetical: delta less "
        "its mean over the letters, TF-MoDISco's input",
    )
    ism.add_argument("--start", type=int, help="first position to mutate; default: 0")
    ism.add_argument("--end", type=int, help="the position after the last, or counted from the end; default: all")
    ism.add_argument(
        "--at-once", type=int, metavar="N", help="sequences between two writes; default: 16, or for .zarr up to 64"
    )
    ism.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_workers(ism)
    precompute.add_argument("--fasta", type=Path, metavar="FILE", help="for the length of its sequences")
    precompute.add_argument("--length", type=int, metavar="L", help="or the length itself")
    precompute.add_argument("--out", required=True, type=Path, metavar="FILE", help="the precomputation")
    ism.add_argument("--precision", choices=PRECISIONS, help="of products; default: the precomputation's, or highest")
    precompute.add_argument("--precision", default="highest", choices=PRECISIONS, help="of products; default: highest")
    return made


def _add_workers(ism: argparse.ArgumentParser) -> None:
    """Add the options of runs that write a Zarr store."""
    group = ism.add_argument_group("runs with several workers", "for --out FILE.zarr")
    add = group.add_argument
    add("--workers", type=int, metavar="N", help="processes of this machine; default: 1, or one for each of --devices")
    add("--devices", metavar="D,D", help="such as cuda:0,cuda:1, dealt out to the workers")
    add("--shard", metavar="I/N", help="each N-th block, from I (0 to N-1, or 1 to N); array: read from the scheduler")
    add("--threads", type=int, default=1, metavar="N", help="of each worker on a CPU; default: 1")
    add("--retry", action="store_true", help="score blocks with sequences that failed again")
    add("--submit", choices=CLUSTERS, help="as jobs of SLURM, or of this machine, through submitit")
    add("--jobs", type=int, default=1, metavar="N", help="of --submit; default: 1")
    add(
        "--setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of submitit, such as timeout_min=600, slurm_partition=gpu or gpus_per_node=1; may be given again",
    )
    add("--wait", action="store_true", help="for the jobs of --submit")


def _add_variants(command: argparse.ArgumentParser) -> None:
    """Add the options that ``yuzu variants`` alone has."""
    add = command.add_argument
    add("--weights", type=Path, nargs="+", metavar="FILE", help="its state_dict; of several folds scores are averaged")
    add("--variants", required=True, type=Path, metavar="FILE", help="VCF or a table, also gzipped")
    add("--schema", choices=SCHEMAS, help="of --variants; default: told from the file's name and columns")
    add("--genome", required=True, type=Path, metavar="FILE", help="FASTA that they are of")
    add("--width", required=True, type=int, metavar="L", help="length of the sequences that the model reads")
    add(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="scores, .tsv, .tsv.gz or .parquet; goes on with an unfinished job",
    )
    add(
        "--scores",
        nargs="+",
        default=["delta"],
        metavar="NAME",
        help="delta (default), max_abs, logfc, abs_logfc, jsd, active_allele_quantile, or products such as "
        "abs_logfc_x_jsd",
    )
    picked = "an element of the model's output (a number or a key), or FILE.py:NAME, a function of it"
    add("--counts", metavar="PICK", help=f"log counts: {picked}")
    add("--profile", metavar="PICK", help="profile logits, likewise")
    add("--func", metavar="PICK", help="outputs for delta and max_abs, likewise; default: all")
    add("--target", type=int, help="the output to score, of those; default: all")
    add("--reverse-complement", action="store_true", help="average both strands")
    add("--indels", default="left", choices=list(SIDES), help="the flank that stays where it is; default: left")
    add("--share", type=int, default=0, metavar="BP", help="variants so near each other share a reference; default: 0")
    add("--peaks", type=Path, metavar="FILE", help="log counts of peaks: a number a line, or a column log_counts")
    add("--predictions", action="store_true", help="write both alleles' predictions, too")
    add("--precomputation", type=Path, metavar="FILE", help="made by yuzu precompute; default: made anew")
    add("--batch-size", type=int, metavar="N", help="sequences carried at once, at most; default: picked")
    add("--at-once", type=int, default=4096, metavar="N", help="variants between two writes; default: 4096")
    add("--quiet", action="store_true", help="no progress bar")
