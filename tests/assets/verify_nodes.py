"""Verify nodes by where they were proposed and the tokens down to them: in a trace, and in a batch of the trainer.

Tests compare the two. Both are walked one node at a time, so that they share nothing with the code that they check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.batch import Batch


@dataclass(frozen=True)
class Node:
    """One verify node: where its round was proposed, and the tokens from below the round's root down to it."""

    index: int  # among the trace's nodes
    slot: int  # absolute
    path: tuple[int, ...]
    accepted: bool
    children: tuple[int, ...]  # tokens


def nodes_of(trace: RequestTrace, steps: int) -> Iterator[Node]:
    """The nodes above depth ``steps``, round by round."""
    first = 0
    for root, count in zip(trace.root.tolist(), trace.node_count.tolist(), strict=True):
        for i in range(count):
            path: list[int] = []
            at = i
            while at:
                path.insert(0, int(trace.node_token[first + at]))
                at = int(trace.node_parent[first + at])
            below = [n for n in range(first, first + count) if int(trace.node_parent[n]) == i]
            children = tuple(int(trace.node_token[n]) for n in below)
            if len(path) < steps:
                yield Node(first + i, root - 1, tuple(path), bool(trace.node_accepted[first + i]), children)
        first += count


@dataclass(frozen=True)
class Unrolled:
    """One node of a batch: the draft's output there, and the row of its teacher (-1: none)."""

    output: Tensor
    row: int


def by_path(batch: Batch, outputs: Sequence[Tensor], i: int) -> dict[tuple[int, tuple[int, ...]], Unrolled]:
    """Nodes of sequence ``i`` by absolute slot of their root and tokens down to them."""
    slots = batch.trunk.root[i] + batch.trunk.start[i]
    paths: list[tuple[int, tuple[int, ...]]] = [(int(slot), ()) for slot in slots]
    found = {}
    for depth, (output, row) in enumerate(zip(outputs, batch.rows, strict=True)):
        if depth:
            level = batch.levels[depth - 1]
            above = [paths[up] for up in level.parent[i].tolist()]
            paths = [(slot, (*path, t)) for (slot, path), t in zip(above, level.token[i].tolist(), strict=True)]
        for n, path in enumerate(paths):
            if path not in found or int(row[i, n]) >= 0:  # padding repeats a root
                found[path] = Unrolled(output[i, n], int(row[i, n]))
    return found
