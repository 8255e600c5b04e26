"""Shapes of verify rounds, from the counts by shape and source in the manifests of stored shards. Pure.

A round counts once for each request that takes part, by who proposed for that request.

Invariant: counts that contradict their manifest are not used. The manifest then says nothing about shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from aurora_cli.report.report import ShapeKind, ShapeSeries
from aurora_protocol.training_records import ShapeCounts, ShardManifest

NONE: Final = "none"
LOOKUP: Final = "lookup"
DRAFT: Final = "draft"
MAX_DRAFT_SERIES: Final = 7
"""Most series of the draft. The controller offers six numbers of steps, and the draft's most."""

Shape = tuple[str, int]
"""Source and steps."""


def shapes_of(shard: ShardManifest) -> tuple[ShapeCounts, ...]:
    """The counts of a manifest. Empty when it has none that explain each of its rounds."""
    counts = shard.shapes or ()
    known = all(one.source in (NONE, LOOKUP, DRAFT) for one in counts)
    return counts if known and sum(one.rounds for one in counts) == shard.rounds else ()


def shape_series(shards: Sequence[ShardManifest]) -> tuple[ShapeSeries, ...]:
    """The series of a chart: each number of steps of the draft, lookup, no proposal, and off. Each has rounds."""
    rounds = _rounds(shards)
    steps = [steps for (source, steps), _ in rounds.most_common() if source == DRAFT]
    kept = len(steps) if len(steps) <= MAX_DRAFT_SERIES else MAX_DRAFT_SERIES - 1
    own, others = sorted(steps[:kept], reverse=True), sorted(steps[kept:])
    found = [
        *(ShapeSeries(f"draft-{number}", ShapeKind.DRAFT, (number,)) for number in own),
        ShapeSeries("draft, other lengths", ShapeKind.DRAFT, tuple(others)),
        ShapeSeries("lookup", ShapeKind.LOOKUP, _steps(rounds, LOOKUP)),
        ShapeSeries("no proposal", ShapeKind.NO_PROPOSAL, tuple(one for one in _steps(rounds, NONE) if one)),
        ShapeSeries("off", ShapeKind.OFF, (0,) if (NONE, 0) in rounds else ()),
    ]
    return tuple(one for one in found if one.steps)


def shape_shares(shards: Sequence[ShardManifest], series: Sequence[ShapeSeries]) -> tuple[float, ...]:
    """The share of the rounds that each series had. Empty when no manifest says it."""
    rounds = _rounds(shards)
    if not rounds:
        return ()
    return tuple(sum(rounds[shape] for shape in _shapes(one)) / rounds.total() for one in series)


def _rounds(shards: Sequence[ShardManifest]) -> Counter[Shape]:
    found = Counter[Shape]()
    for shard in shards:
        for one in shapes_of(shard):
            found[one.source, one.steps] += one.rounds
    return +found


def _steps(rounds: Counter[Shape], source: str) -> tuple[int, ...]:
    return tuple(sorted(steps for own, steps in rounds if own == source))


def _shapes(series: ShapeSeries) -> Iterator[Shape]:
    source = {ShapeKind.DRAFT: DRAFT, ShapeKind.LOOKUP: LOOKUP}.get(series.kind, NONE)
    return ((source, steps) for steps in series.steps)
