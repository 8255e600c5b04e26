"""Replays recorded rounds under a policy, with a cost table instead of an engine.

A closed loop: ``concurrency`` requests run, and the next request of the traffic replaces each one that ends. Policies
see noisy times; results use true times, so that a few hundred rounds suffice to tell policies apart.
Invariant: an answer has the same tokens under every policy. A policy only decides how many rounds the answer takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.speculation.cost_tables import CostTable, Noise
from tests.bench.speculation.recorded_rounds import RecordedRequest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller import RequestOutlook
from aurora_runtime.serving.speculation.worker.policy import Policy

BACKLOG_TOKENS = 256
"""The draft's backlog grows up to this many tokens, because older ones are not needed for good proposals."""


@dataclass(frozen=True)
class PlayedRound:
    """One round of the simulation."""

    arm: Arm
    explores: bool
    tokens: int
    milliseconds: float
    off_milliseconds: float
    """The time in which rounds without speculation make as many tokens, at the same batch size."""


@dataclass
class _Running:
    rid: str
    request: RecordedRequest
    place: int = 0
    pending: int = 0

    def outlook(self) -> RequestOutlook:
        r, p = self.request, self.place
        return RequestOutlook(self.rid, r.lookup_match[p], r.lookup_length[p], self.pending)

    def accept(self, source: Source, arm: Arm) -> int:
        """The accepted tokens of a round, and the step to the place after it."""
        right = 0
        if source is Source.LOOKUP:
            right = self.request.lookup_right[self.place]
        elif source is Source.DRAFT:
            right = self.request.draft_right[self.place]
        accepted = min(right, arm.steps)
        self.place += accepted + 1
        self.pending = 0 if arm.drafts else min(BACKLOG_TOKENS, self.pending + accepted + 1)
        return accepted


def play(
    policy: Policy,
    traffic: Iterable[RecordedRequest],
    concurrency: int,
    costs: CostTable,
    noise: Noise,
    reports_unplayed_lookup: bool = True,
) -> Iterator[PlayedRound]:
    """The rounds until the traffic ends and a place becomes free.

    ``reports_unplayed_lookup``: whether the worker compares lookups that it did not use with the tokens of the round.
    """
    waiting = enumerate(traffic)
    running = list[_Running]()
    while True:
        while len(running) < concurrency:
            if (following := next(waiting, None)) is None:
                return
            running.append(_Running(f"r{following[0]}", following[1]))
        outlooks = [r.outlook() for r in running]
        decision = policy.choose(outlooks)
        pending = sum(o.pending for o in outlooks) if decision.arm.drafts else 0
        milliseconds = costs(decision.arm, len(running), pending)
        right = [r.request.lookup_right[r.place] for r in running]
        accepted = [r.accept(s, decision.arm) for r, s in zip(running, decision.sources, strict=True)]
        unplayed = [min(a, b + 1) for a, b in zip(right, accepted, strict=True)] if reports_unplayed_lookup else []
        policy.observe(decision, outlooks, accepted, noise.measured(milliseconds), unplayed)
        tokens = len(running) + sum(accepted)
        off = costs(OFF, len(running), 0) * tokens / len(running)
        yield PlayedRound(decision.arm, decision.explores, tokens, milliseconds, off)
        for r in running:
            if r.place >= r.request.places:
                policy.request_ended(r.rid)
        running = [r for r in running if r.place < r.request.places]


def speed(rounds: Sequence[PlayedRound]) -> float:
    """Tokens per millisecond."""
    return sum(r.tokens for r in rounds) / sum(r.milliseconds for r in rounds)


def against_off(rounds: Sequence[PlayedRound]) -> float:
    """The speed over that of rounds without speculation which make the same tokens."""
    return sum(r.off_milliseconds for r in rounds) / sum(r.milliseconds for r in rounds)


def worst_window(rounds: Sequence[PlayedRound], window: int) -> float:
    """The lowest :func:`against_off` of all stretches of ``window`` rounds."""
    off, own, worst = 0.0, 0.0, float("inf")
    for i, r in enumerate(rounds):
        off += r.off_milliseconds
        own += r.milliseconds
        if i >= window:
            off -= rounds[i - window].off_milliseconds
            own -= rounds[i - window].milliseconds
        if i >= window - 1:
            worst = min(worst, off / own)
    return worst
