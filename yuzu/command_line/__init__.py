"""``yuzu ism``, ``yuzu variants`` and ``yuzu precompute``: scores of the sequences of a FASTA file, of regions, or of
variants, for batch jobs; ``yuzu status`` and ``yuzu export`` for runs of many workers.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

from yuzu._engine.progress import hushed
from yuzu.command_line.commands import run_ism, run_precompute
from yuzu.command_line.options import parser as parser
from yuzu.command_line.runs import run_export, run_status
from yuzu.command_line.variants import run_variants
from yuzu.errors import YuzuError, one_line

__all__ = ["main", "parser"]


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "export": run_export,
    "ism": run_ism,
    "precompute": run_precompute,
    "status": run_status,
    "variants": run_variants,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``yuzu`` and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command's arguments. Default: those of the process.

    Returns
    -------
    int
        0; 3 if all is done, but for sequences that failed; 2 for bad input, after one line on standard error that says
        what to do.

    Examples
    --------
    >>> main(["ism", "--model", "net.py:build", "--out", "scores.h5"])
    2
    """
    options = parser().parse_args(arguments)
    pythons = warnings.formatwarning
    # Python's own format adds the place, and a line of our source
    warnings.formatwarning = lambda message, *_, **__: f"yuzu {options.command}: warning: {message}\n"
    try:
        with hushed(getattr(options, "quiet", False)):
            return _COMMANDS[options.command](options) or 0
    except (YuzuError, OSError) as error:  # a file that cannot be opened or written, which the error names
        print(f"yuzu {options.command}: {error if isinstance(error, YuzuError) else one_line(error)}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = pythons


def __dir__() -> list[str]:
    return sorted(__all__)
