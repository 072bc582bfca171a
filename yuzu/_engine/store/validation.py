"""Checks of a precomputation from a file against the model that it is used with."""

from __future__ import annotations

from typing import NoReturn

import torch

from yuzu._engine.graph import Graph, Node
from yuzu._engine.settings import NAIVE_BATCH, Settings
from yuzu._engine.store.decisions import Decisions
from yuzu._engine.store.files import is_number
from yuzu._engine.ways.compressed_sensing import SEEDS_OF_A_STATE
from yuzu.errors import PrecomputationError


def damaged(why: str) -> NoReturn:
    raise PrecomputationError(f"the precomputation is damaged: {why}; make it again with precompute and save")


def check_nodes(graph: Graph | None, settings: Settings, decisions: Decisions, arrays: dict[str, torch.Tensor]) -> None:
    """Refuse decisions that are not about this graph, or do not fit to the settings: those of a damaged file."""
    _check_layers(graph, decisions)
    if decisions.precision not in (settings.precision, "highest"):
        asked = settings.precision
        damaged(f"decisions['precision'] is {decisions.precision!r}, where settings['precision'] is {asked!r}")
    if decisions.naive_batch > max(NAIVE_BATCH, settings.seq_len * settings.n_choices):
        damaged(f"decisions['naive_batch'] is {decisions.naive_batch}, which is more than a sequence has mutants")
    probing, by_probes = decisions.probing, "gaussian" in decisions.ways.values()
    if (by_probes or probing is not None) and settings.conv != "gaussian":
        damaged(f"decisions have Gaussian probes, where settings['conv'] is {settings.conv!r}")
    if by_probes and probing is None:
        damaged("decisions['ways'] has Gaussian probes, and decisions['probing'] is None")
    nodes = len(graph.nodes) if graph is not None else 0
    if probing is not None and settings.random_state * SEEDS_OF_A_STATE + nodes >= 2**64:
        damaged(f"settings['random_state'] is {settings.random_state}, which is too large for Gaussian probes")
    if arrays and probing is None:
        damaged("it holds matrices of Gaussian probes, and decisions['probing'] is None")
    _check_arrays(graph, settings, arrays)


def _node(graph: Graph | None, field: str, number: int, called: bool = True, mutated: bool = True) -> Node:
    nodes = graph.nodes if graph is not None else []
    if number >= len(nodes):
        damaged(f"{field} has node {str(number)[:20]}, where the model's graph has {len(nodes)} nodes")
    node = nodes[number]
    if (called and node.kind != "call") or (mutated and not node.mutated):
        damaged(f"{field} has node {number}, which is no operation that a mutation changes")
    return node


def _check_layers(graph: Graph | None, decisions: Decisions) -> None:
    for number in decisions.naive:
        _node(graph, "decisions['naive']", number, mutated=False)
    for number in decisions.ways:  # also of nodes that had a rule when they were made, and have none here
        _node(graph, "decisions['ways']", number, called=False, mutated=False)
    for number in decisions.probing.probes if decisions.probing is not None else ():
        _node(graph, "decisions['probing']['probes']", number)
    seen = set()
    for layer in decisions.layers:
        node = _node(graph, "decisions['layers']", layer.node)
        operation = node.op.removeprefix("aten.")
        if layer.layer != node.layer or layer.operation.split(" (")[0] != operation or node.index in seen:
            damaged(
                f"decisions['layers'] has {[*layer[:2]]!r} for node {layer.node}, which is {[node.layer, operation]!r}"
                + (" and has a row already" if node.index in seen else "")
            )
        seen.add(node.index)


def _check_arrays(graph: Graph | None, settings: Settings, arrays: dict[str, torch.Tensor]) -> None:
    for name, array in arrays.items():
        part, *place = name.split(".")
        if part not in ("encode", "decode") or len(place) != 4 or not all(map(is_number, place[:2])):
            damaged(f"it holds {name[:80]!r}, which is no matrix of Gaussian probes")
        _node(graph, f"the matrix {name[:80]!r}", int(place[0]))
        other = {"encode": "decode", "decode": "encode"}[part]
        if ".".join([other, *place]) not in arrays:
            damaged(f"it holds the matrix {name[:80]!r} without the one to {other}")
        if array.dim() != 3 or f"torch.{place[3]}" != str(array.dtype) or str(array.dtype) != settings.dtype:
            damaged(
                f"the matrix {name[:80]!r} has shape {tuple(array.shape)} and dtype {array.dtype}, want three axes and "
                f"{settings.dtype}"
            )
