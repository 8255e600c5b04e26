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
from aurora_runtime.engine.speculation_settings import PENDING_TOKENS
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.draft_progress import ROUNDS_IN_USE
from aurora_runtime.serving.speculation.worker.policy import Policy

Load = Callable[[int], int]
"""How many requests run at a time, by the number of requests that have begun. So it is the same for every policy."""
_SMALLEST_DRAFT = Arm(1, drafts=True)


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
    place: int = 0
    pending: int = 0

    def outlook(self) -> RequestOutlook:
        r, p = self.request, self.place
        return RequestOutlook(self.rid, r.lookup_match[p], r.lookup_length[p], self.pending)

    def accept(self, source: Source, arm: Arm, *, is_draft_trained: bool = True) -> int:
        """The accepted tokens of a round, and the step to the place after it."""
        right = 0
        if source is Source.LOOKUP:
            right = self.request.lookup_right[self.place]
        elif source is Source.DRAFT and is_draft_trained:
            right = self.request.draft_right[self.place]
        accepted = min(right, arm.steps)
        self.place += accepted + 1
        if self.pending != CANNOT_DRAFT and not arm.drafts:
            self.pending += accepted + 1
        return accepted


class _DraftBacklog:
    """Which requests the draft catches up with, as in the worker's ``draft_progress.py``."""

    def __init__(self) -> None:
        self._rounds_unused = ROUNDS_IN_USE

    def catch_up(self, decision: Decision, running: Sequence[_Running]) -> int:
        """The tokens that the draft processes before a round. A full buffer of a draft out of use is given up."""
        drafts = decision.arm.drafts
        self._rounds_unused = 0 if drafts and not decision.explores else self._rounds_unused + 1
        late = [r for r in running if r.pending > (0 if drafts else PENDING_TOKENS)]
        if not drafts and self._rounds_unused >= ROUNDS_IN_USE:
            for r in late:
                r.pending = CANNOT_DRAFT
            return 0
        tokens = sum(r.pending for r in late)
        for r in late:
            r.pending = 0
        return tokens


def play(
    policy: Policy,
    traffic: Iterable[RecordedRequest],
    concurrency: int | Load,
    costs: CostTable,
    noise: Noise,
    reports_unplayed_lookup: bool = True,
    untrained_rounds: int = 0,
    runs_untrained: bool = True,
) -> Iterator[PlayedRound]:
    """The rounds until the traffic ends and a place becomes free.

    Args:
        concurrency: the requests that run at a time.
        reports_unplayed_lookup: whether the worker compares lookups that it did not use with the tokens of the round.
        untrained_rounds: rounds in which a draft serves that guesses nothing. Then the draft of the traffic is swapped
            in, and the running requests go on.
        runs_untrained: whether the former draft processes prompts. If not, the requests of that time go without any
            draft.
    """
    waiting = iter(traffic)
    load, running, begun = load_of(concurrency), list[_Running](), 0
    backlog = _DraftBacklog()
    for number in itertools.count():
        if number == untrained_rounds > 0:
            policy.draft_serves("trained")
        while len(running) < load(begun):
            if (following := next(waiting, None)) is None:
                return
            drafts = runs_untrained or number >= untrained_rounds
            running.append(_Running(f"r{begun}", following, pending=0 if drafts else CANNOT_DRAFT))
            begun += 1
        outlooks = [r.outlook() for r in running]
        decision = policy.choose(outlooks)
        size, late = len(running), backlog.catch_up(decision, running)
        catch_up = costs(_SMALLEST_DRAFT, size, late) - costs(_SMALLEST_DRAFT, size, 0)
        milliseconds = costs(decision.arm, size, 0) + catch_up
        right = [r.request.lookup_right[r.place] for r in running]
        is_trained = number >= untrained_rounds
        accepted = [
            r.accept(source, decision.arm, is_draft_trained=is_trained)
            for r, source in zip(running, decision.sources, strict=True)
        ]
        unplayed = [min(a, b + 1) for a, b in zip(right, accepted, strict=True)] if reports_unplayed_lookup else []
        took = noise.measured(milliseconds)
        told = None if late and not decision.arm.drafts else took  # a catch-up is not the work of such a round
        policy.observe(decision, outlooks, accepted, told, unplayed)
        for ended in (r for r in running if r.place >= r.request.places):
            policy.request_ended(ended.rid)
        tokens = size + sum(accepted)
        off = costs(OFF, size, 0) * tokens / size
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
