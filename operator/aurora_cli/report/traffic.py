"""Live acceptance and sources of answer tokens, from the manifests of stored shards. Pure.

A manifest counts answer tokens, verify rounds, and the tokens that the draft proposed and had accepted. With its counts
by shape and source, the tokens of lookup are known too, and all others are the target's own. Without them, each verify
round gives one token of the target's own. The answer tokens that are left are those that lookup proposed, and the first
token of each answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Final

from aurora_cli.report.report import AcceptancePoint, ShapeSeries, Traffic, TrafficBin, utc
from aurora_cli.report.shapes import LOOKUP, shape_series, shape_shares, shapes_of
from aurora_protocol.training_records import ShardManifest

MAX_BINS: Final = 24
MAX_ACCEPT_LENGTH: Final = 1000.0
"""A longer acceptance length is an error of the record."""

MAX_PROPOSED: Final = 1000
"""More proposed tokens per verify round are an error of the record."""


def learned_at(times: Sequence[tuple[datetime, int]]) -> Callable[[datetime], float | None]:
    """The tokens learned at a time, interpolated between known ones. None before the first and without any.

    Args:
        times: when how many tokens had been learned, in any order. After the last time the number stays.
    """
    known = sorted(times)
    moments = [moment for moment, _ in known]

    def at(moment: datetime) -> float | None:
        number = bisect_right(moments, moment)
        if number == 0:
            return None
        before, tokens = known[number - 1]
        if number == len(known):
            return float(tokens)
        after, more = known[number]
        share = (moment - before) / (after - before)
        return tokens + share * (more - tokens)

    return at


def live_acceptance(
    shards: Sequence[ShardManifest], learned: Callable[[datetime], float | None]
) -> tuple[AcceptancePoint, ...]:
    """The acceptance length of each shard, placed at the tokens learned when it was written."""
    points = []
    for shard in shards:
        tokens = learned(shard.created)
        if tokens is None or not shard.rounds:
            continue
        length = shard.answer_tokens / shard.rounds
        if 1.0 <= length <= MAX_ACCEPT_LENGTH:
            points.append(AcceptancePoint(tokens, length, float(shard.rounds)))
    return tuple(sorted(points, key=lambda one: one.learned_tokens))


def traffic(shards: Sequence[ShardManifest]) -> Traffic:
    """Stored traffic in at most :data:`MAX_BINS` equal stretches of time, two shards in each on average.

    The first and the last percent of the shards do not stretch the time, because a pod's clock may be wrong. They count
    in the first and the last stretch.

    Args:
        shards: manifests by the time at which they were written.
    """
    useful = [one for one in shards if one.answer_tokens and one.proposed < MAX_PROPOSED * one.rounds]
    if not useful:
        return Traffic()
    series = shape_series(useful)
    count = max(1, min(MAX_BINS, len(useful) // 2))
    strays = len(useful) // 100
    start, end = utc(useful[strays].created), utc(useful[-1 - strays].created)
    span = end - start

    def place(shard: ShardManifest) -> int:
        return max(0, min(count - 1, (utc(shard.created) - start) * count // span)) if span else 0

    return Traffic(
        bins=tuple(
            _bin(list(own), start + span * number / count, start + span * (number + 1) / count, series)
            for number, own in groupby(useful, key=place)
        ),
        series=series,
        shards=len(useful),
        without_shapes=sum(not shapes_of(one) for one in useful),
    )


def _bin(shards: Sequence[ShardManifest], start: datetime, end: datetime, series: Sequence[ShapeSeries]) -> TrafficBin:
    answers = sum(one.answer_tokens for one in shards)
    draft, lookup, target = (sum(tokens) for tokens in zip(*map(_sources, shards), strict=True))
    return TrafficBin(
        start=start,
        end=end,
        from_draft=draft / answers,
        from_lookup=lookup / answers,
        from_target=target / answers,
        rest=(answers - draft - lookup - target) / answers,
        proposed_per_round=sum(one.proposed for one in shards) / sum(one.rounds for one in shards),
        shapes=shape_shares(shards, series),
    )


def _sources(shard: ShardManifest) -> tuple[int, int, int]:
    """Answer tokens of the draft, of lookup and of the target. Their sum is not above the answer tokens."""
    draft = min(shard.accepted, shard.answer_tokens)
    others = shard.answer_tokens - draft
    if shapes := shapes_of(shard):
        lookup = min(sum(one.accepted for one in shapes if one.source == LOOKUP), others)
        return draft, lookup, others - lookup
    return draft, 0, min(shard.rounds, others)
