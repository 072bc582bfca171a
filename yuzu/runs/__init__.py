"""Runs of any size: scores of many sequences in a Zarr store, by workers that may be killed at any moment.

Sequences are scored in blocks. A worker claims a block, scores it, and writes it to a file that appears whole. What a
killed worker had claimed is taken over by the others, or by the next call: the same call goes on where the last one
stopped, and two at once share the work. The scores are the same, bit for bit, for any workers and any kills on machines
of one kind.
"""

from __future__ import annotations

from yuzu.runs.exporting import export as export
from yuzu.runs.ism import ism_to as ism_to
from yuzu.runs.progress import Status as Status
from yuzu.runs.progress import status as status

__all__ = ["Status", "export", "ism_to", "status"]


def __dir__() -> list[str]:
    return sorted(__all__)
