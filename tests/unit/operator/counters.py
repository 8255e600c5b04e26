"""Counters of pods' engines, for tests of the live analysis."""

from __future__ import annotations

import math

from aurora_protocol.agent_api import LiveCounters

STEPS = 3
ROUNDS = 40
"""Verify rounds of one request."""


def counters(requests: int, length: float, **more: int) -> LiveCounters:
    rounds = requests * ROUNDS
    return LiveCounters(requests=requests, verify_rounds=rounds, answer_tokens=round(rounds * length), **more)


def paced(*milliseconds: float) -> LiveCounters:
    """Counters of requests with these mean times between tokens, in the buckets of SGLang's histogram."""
    edges = [2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40, 60, 80, 100, 200, 400, 600, 800, 1000, 2000, 4000, 6000, 8000]
    above = [next((edge for edge in edges if gap <= edge), gap) for gap in milliseconds]
    return counters(
        len(milliseconds),
        2.0,
        gaps=len(milliseconds),
        gap_milliseconds=round(sum(milliseconds)),
        gap_squares=math.ceil(sum(edge * edge for edge in above)),
    )
