"""Reads the nodes of verify rounds from a trace and from a batch of the trainer, so that tests can compare the two.

A node is identified by the slot at which its round was proposed and by the tokens on the path to the node. Both readers
visit one node at a time. They share no code with the vectorized code that they check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.batch import Batch


@dataclass(frozen=True)
class Node:
    """One node of a verify round."""

    index: int
    """The node's index among all nodes of the trace."""
    slot: int
    """The absolute slot at which the round was proposed."""
    path: tuple[int, ...]
    """The tokens on the path from below the round's root to the node, the node's own token included."""
    accepted: bool
    children: tuple[int, ...]
    """The tokens of the node's children."""


def nodes_of(trace: RequestTrace, steps: int) -> Iterator[Node]:
    """The trace's nodes whose depth is less than ``steps``, round by round."""
    first = 0
    for root, count in zip(trace.root.tolist(), trace.node_count.tolist(), strict=True):
        for i in range(count):
            path: list[int] = []
            ancestor = i
            while ancestor:
                path.insert(0, int(trace.node_token[first + ancestor]))
                ancestor = int(trace.node_parent[first + ancestor])
            child_nodes = [n for n in range(first, first + count) if int(trace.node_parent[n]) == i]
            children = tuple(int(trace.node_token[n]) for n in child_nodes)
            if len(path) < steps:
                yield Node(first + i, root - 1, tuple(path), bool(trace.node_accepted[first + i]), children)
        first += count


@dataclass(frozen=True)
class BatchNode:
    """One node of a batch: the draft's output ``[H]``, and the row of its target distribution (-1: it has none)."""

    output: Tensor
    row: int


def target_rows(batch: Batch) -> list[Tensor]:
    """The row of each node's target distribution at each depth ``[B, N]``, -1 where it has none."""
    shapes = [batch.trunk.root_slot.shape, *(level.token.shape for level in batch.levels)]
    sizes = [shape.numel() for shape in shapes]
    rows = torch.full((sum(sizes),), -1)
    rows[batch.trained_node] = batch.trained_row
    return [part.view(shape) for part, shape in zip(torch.split(rows, sizes), shapes, strict=True)]


def nodes_by_path(batch: Batch, outputs: Sequence[Tensor], i: int) -> dict[tuple[int, tuple[int, ...]], BatchNode]:
    """The nodes of sequence ``i``, by the absolute slot of their root and the tokens on the path to the node.

    Args:
        outputs: The draft's output for each depth, ``[B, N, H]``.
    """
    slots = batch.trunk.root_slot[i] + batch.trunk.start[i]
    paths: list[tuple[int, tuple[int, ...]]] = [(int(slot), ()) for slot in slots]
    nodes = {}
    for depth, (output, row) in enumerate(zip(outputs, target_rows(batch), strict=True)):
        if depth:
            level = batch.levels[depth - 1]
            parents = [paths[parent] for parent in level.parent[i].tolist()]
            paths = [(slot, (*path, t)) for (slot, path), t in zip(parents, level.token[i].tolist(), strict=True)]
        for n, path in enumerate(paths):
            if path not in nodes or int(row[i, n]) >= 0:  # padding repeats a root
                nodes[path] = BatchNode(output[i, n], int(row[i, n]))
    return nodes
