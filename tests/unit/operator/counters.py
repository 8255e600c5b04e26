"""Counters of pods' engines, for tests of the live analysis."""

from __future__ import annotations

from collections.abc import Iterable

from aurora_protocol.agent_api import LiveCounters

ROUNDS = 40
"""Verify rounds of one request."""


def sums(requests: Iterable[tuple[int, int]]) -> LiveCounters:
    """Counters of requests, each with its tokens and its verify rounds."""
    ended = list(requests)
    return LiveCounters(
        requests=len(ended),
        tokens=sum(tokens for tokens, _ in ended),
        rounds=sum(rounds for _, rounds in ended),
        tokens_squared=sum(tokens * tokens for tokens, _ in ended),
        tokens_by_rounds=sum(tokens * rounds for tokens, rounds in ended),
        rounds_squared=sum(rounds * rounds for _, rounds in ended),
    )


def counters(requests: int, length: float, *, spread: float = 0.0, rounds: int = ROUNDS) -> LiveCounters:
    """``requests`` of ``rounds`` verify rounds each: half of them ``spread`` above ``length`` tokens a round, and half
    below."""
    more, fewer = (round(rounds * (length + part)) for part in (spread, -spread))
    half = requests // 2
    found = LiveCounters()
    for count, tokens in ((half, more), (requests - half, fewer)):
        one = sums([(tokens, rounds)])
        scaled = {name: count * getattr(one, name) for name in LiveCounters.model_fields}
        found = found.plus(LiveCounters(**scaled))
    return found
