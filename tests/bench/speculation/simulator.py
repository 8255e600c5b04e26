"""Replays recorded rounds under a policy, with a cost table instead of an engine.

A closed loop: ``concurrency`` requests run, and the next request of the traffic replaces each one that ends. A load may
change the concurrency with every request that begins. Policies see noisy times; results use true times, so that a few
hundred rounds suffice to tell policies apart.
Invariant: an answer has the same tokens under every policy. A policy only decides how many rounds the answer takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.speculation.cost_tables import CostTable, Noise
from tests.bench.speculation.recorded_rounds import RecordedRequest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller import Controller
from aurora_runtime.serving.speculation.estimates import size_range
from aurora_runtime.serving.speculation.hooks import WAKE_MATCH, WAKE_ROUNDS, WAKE_SHARE
from aurora_runtime.serving.speculation.lookup import TOKENS_PER_MATCH
from aurora_runtime.serving.speculation.rounds import Outcome, RequestOutlook, plain_decision

Load = Callable[[int], int]
"""How many requests run at a time, by the number of requests that have begun. So it is the same for every policy."""


def load_in_turn(concurrencies: Sequence[int], requests: int) -> Load:
    """One concurrency after the other, over and over, each for so many requests.

    Requests begin at once where the concurrency rises. Where it falls, no request begins until enough have ended.
    """
    return lambda begun: concurrencies[begun // requests % len(concurrencies)]


def load_of(concurrency: int | Load) -> Load:
    """``concurrency`` as a load. A number is always the same one."""
    return concurrency if callable(concurrency) else load_in_turn([concurrency], 1)


@dataclass(frozen=True)
class PlayedRound:
    """One round of the simulation."""

    arm: Arm
    explores: bool
    tokens: int
    milliseconds: float
    off_milliseconds: float
    """The time in which rounds without speculation make as many tokens, at the same batch size."""
    size: int = 1
    """Requests in the batch."""


@dataclass
class _Running:
    rid: str
    request: RecordedRequest
    can_draft: bool
    place: int = 0

    def outlook(self) -> RequestOutlook:
        r, p = self.request, self.place
        length = min(r.lookup_length[p], TOKENS_PER_MATCH * r.lookup_match[p])
        return RequestOutlook(self.rid, r.lookup_match[p], length, self.can_draft)

    def right(self, source: Source, is_draft_trained: bool = True) -> int:
        """How many tokens of the source are right."""
        if source is Source.LOOKUP:
            return min(self.request.lookup_right[self.place], self.outlook().lookup_length)
        return self.request.draft_right[self.place] if source is Source.DRAFT and is_draft_trained else 0


def play(
    policy: Controller,
    traffic: Iterable[RecordedRequest],
    concurrency: int | Load,
    costs: CostTable,
    noise: Noise,
    untrained_rounds: int = 0,
) -> Iterator[PlayedRound]:
    """The rounds until the traffic ends and a place becomes free. Parks and wakes as the hooks do.

    Args:
        concurrency: the requests that run at a time.
        untrained_rounds: rounds in which a draft serves that is not run. Then the draft of the traffic is swapped in,
            and the running requests go on.
    """
    waiting = iter(traffic)
    load, running, begun = load_of(concurrency), list[_Running](), 0
    parked, parked_range = 0, 0
    if untrained_rounds:
        policy.draft_serves(None)
    for number in itertools.count():
        is_trained = number >= untrained_rounds
        if number == untrained_rounds > 0:
            policy.draft_serves("trained")
        while len(running) < load(begun):
            if (following := next(waiting, None)) is None:
                return
            drafts = policy.prefill_drafts()
            parked = 0 if drafts else parked
            running.append(_Running(f"r{begun}", following, drafts))
            begun += 1
        outlooks, size = [r.outlook() for r in running], len(running)
        is_parked = parked > 0 and size_range(size) == parked_range
        decision = plain_decision(size) if is_parked else policy.choose(outlooks)
        parked, parked_range = parked - 1 if is_parked else decision.park_rounds, size_range(size)
        milliseconds = costs(decision.arm, size, decision.keeps_draft)
        right = [r.right(source, is_trained) for r, source in zip(running, decision.sources, strict=True)]
        accepted = [min(tokens, decision.arm.steps) for tokens in right]
        unplayed = [min(r.right(Source.LOOKUP), a + 1) for r, a in zip(running, accepted, strict=True)]
        took = noise.measured(milliseconds)
        if is_parked:
            policy.round_parked(size)
            matching = sum(outlook.lookup_match >= WAKE_MATCH for outlook in outlooks)
            parked = 0 if parked % WAKE_ROUNDS == 1 and matching >= max(1, WAKE_SHARE * size) else parked
        else:
            policy.observe(Outcome(decision, outlooks, accepted, took, unplayed))
        for r, tokens in zip(running, accepted, strict=True):
            r.place += tokens + 1
            r.can_draft &= decision.keeps_draft
        for ended in (r for r in running if r.place >= r.request.places):
            policy.request_ended(ended.rid)
        tokens = size + sum(accepted)
        off = costs(OFF, size, False) * tokens / size
        yield PlayedRound(decision.arm, decision.explores, tokens, milliseconds, off, size)
        running = [r for r in running if r.place < r.request.places]


def speed(rounds: Sequence[PlayedRound]) -> float:
    """Tokens per millisecond."""
    return sum(r.tokens for r in rounds) / sum(r.milliseconds for r in rounds)


def against_off(rounds: Sequence[PlayedRound]) -> float:
    """The speed over that of rounds without speculation which make the same tokens."""
    return sum(r.off_milliseconds for r in rounds) / sum(r.milliseconds for r in rounds)


def windows_against_off(rounds: Sequence[PlayedRound], window: int) -> Iterator[float]:
    """The :func:`against_off` of each stretch of ``window`` rounds. There is none if there are fewer rounds."""
    off, own = 0.0, 0.0
    for i, r in enumerate(rounds):
        off += r.off_milliseconds
        own += r.milliseconds
        if i >= window:
            off -= rounds[i - window].off_milliseconds
            own -= rounds[i - window].milliseconds
        if i >= window - 1:
            yield off / own


def worst_window(rounds: Sequence[PlayedRound], window: int) -> float:
    """The lowest :func:`against_off` of all stretches of ``window`` rounds. Infinite if there are fewer rounds."""
    return min(windows_against_off(rounds, window), default=float("inf"))
