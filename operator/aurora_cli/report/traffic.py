"""Live acceptance and sources of answer tokens, from the manifests of stored shards. Pure.

A manifest counts answer tokens, verify rounds, and the tokens that the draft proposed and had accepted. Each verify
round gives one token of the target's own. The answer tokens that are left are those that lookup proposed, and the first
token of each answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from aurora_cli.report.report import AcceptancePoint, TrafficBin, utc
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


def sources(shards: Sequence[ShardManifest]) -> tuple[TrafficBin, ...]:
    """Stored traffic in at most :data:`MAX_BINS` stretches of equally many shards, oldest first."""
    useful = [one for one in shards if one.answer_tokens and one.proposed < MAX_PROPOSED * one.rounds]
    count = min(MAX_BINS, len(useful))
    edges = [number * len(useful) // count for number in range(count + 1)] if count else []
    return tuple(_bin(useful[low:high]) for low, high in pairwise(edges))


def _bin(shards: Sequence[ShardManifest]) -> TrafficBin:
    answers, rounds = sum(one.answer_tokens for one in shards), sum(one.rounds for one in shards)
    draft = min(sum(one.accepted for one in shards), answers)
    target = min(rounds, answers - draft)
    return TrafficBin(
        start=utc(shards[0].created),
        end=utc(shards[-1].created),
        from_draft=draft / answers,
        from_target=target / answers,
        rest=(answers - draft - target) / answers,
        proposed_per_round=sum(one.proposed for one in shards) / rounds,
    )
