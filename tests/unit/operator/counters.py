"""Counters of pods' engines, for tests of the live analysis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aurora_protocol.agent_api import DraftCounters, LiveCounters

STEPS = 3
ROUNDS = 40
"""Verify rounds of one request."""


def counters(requests: int, length: float, **more: int) -> LiveCounters:
    rounds = requests * ROUNDS
    plain = LiveCounters(requests=requests, verify_rounds=rounds, answer_tokens=round(rounds * length))
    return plain.model_copy(update=more)


def chains(drafted: Iterable[Sequence[tuple[int, int]]]) -> DraftCounters:
    """Counters of chains: for each request with proposals, the proposed and accepted tokens of each chain."""
    requests = [request for request in drafted if request]
    pairs = [pair for request in requests for pair in request]
    longest = max((proposed for proposed, _ in pairs), default=0)
    return DraftCounters(
        requests=len(requests),
        proposed_at=tuple(sum(proposed > at for proposed, _ in pairs) for at in range(longest)),
        accepted_at=tuple(sum(accepted > at for _, accepted in pairs) for at in range(longest)),
    )


def drafting(requests: int, draft: DraftCounters, *, length: float = 2.0, **more: int) -> LiveCounters:
    """Counters of a server with the speculation controller, which makes ``length`` tokens a round by any source."""
    return counters(requests, length, **more).model_copy(update={"draft": draft})


def steady(requests: int, share: float, *, steps: int = 3, each: int = 10) -> DraftCounters:
    """Counters of a draft that proposes ``each`` chains of ``steps`` to a request. A token is accepted with ``share``,
    if those before it are."""
    proposed = requests * each
    return DraftCounters(
        requests=requests,
        proposed_at=(proposed,) * steps,
        accepted_at=tuple(round(proposed * share ** (at + 1)) for at in range(steps)),
    )
