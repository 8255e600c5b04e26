"""What a policy is told before a round, what it decides, and the policy of fixed arms for measurements and tests.

All of them are plain values, so that a decision can be broadcast between the ranks of a tensor-parallel group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.pod_files import RoundCost

UNION: Final = "union"


class RequestOutlook(NamedTuple):
    """One running request before a round.

    Attributes:
        lookup_match: length in tokens of the suffix that lookup found elsewhere. 0: lookup has nothing.
        lookup_length: tokens that lookup can propose.
        can_draft: whether the draft has processed the request's prompt and each round since.
    """

    rid: str
    lookup_match: int
    lookup_length: int
    can_draft: bool


@dataclass(frozen=True)
class Decision:
    """What a round does.

    Attributes:
        sources: the source of each request's proposal, in the batch's order.
        explores: whether the round runs to learn something rather than because its arm seems best.
        keeps_draft: whether the draft processes the round's tokens. Otherwise no request of the batch can draft again.
        park_rounds: the next rounds that are off without a decision, unless something wakes the controller.
    """

    arm: Arm
    sources: tuple[Source, ...]
    explores: bool = False
    keeps_draft: bool = False
    park_rounds: int = 0


def plain_decision(requests: int) -> Decision:
    """A round without proposals, which is always correct."""
    return Decision(OFF, (Source.NONE,) * requests)


@dataclass(frozen=True)
class Outcome:
    """What came of a decided round.

    Attributes:
        accepted: accepted proposed tokens of each request, without the target's own token.
        milliseconds: the round's time. None: it cannot be compared, for example because a prefill was in between.
        unplayed_lookup: for each request, how many tokens of its lookup are the tokens that the round made. So a
            lookup's value is known although the round did not use it. Empty: not known.
        tokens_made: for each request, how many of the round's tokens its answer took. Fewer than were accepted: the
            answer ended within the round. 0: it had ended before, so the round says nothing about the request. Empty:
            all of them.
    """

    decision: Decision
    outlooks: Sequence[RequestOutlook]
    accepted: Sequence[int]
    milliseconds: float | None
    unplayed_lookup: Sequence[int] = ()
    tokens_made: Sequence[int] = ()

    @property
    def made(self) -> Sequence[int]:
        """The tokens that each answer took."""
        return self.tokens_made or [count + 1 for count in self.accepted]


@dataclass(frozen=True)
class ControllerReport:
    """Estimates of now.

    Attributes:
        speedup_over_off: tokens per second over those that rounds without speculation would have made in the recent
            past. An estimate from the cost table. None: no round was timed.
        saved_seconds: time that speculation saved since the start, by the same estimate. None: not estimated.
    """

    costs: tuple[RoundCost, ...] = ()
    speedup_over_off: float | None = None
    saved_seconds: float | None = None


class Policy(Protocol):
    """Chooses each round and learns from it."""

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        """Decide the next round of a batch."""

    def prefill_drafts(self) -> bool:
        """Whether the draft processes the prompts of the next prefill."""

    def observe(self, outcome: Outcome) -> None:
        """Learn from a round."""

    def round_parked(self, batch_size: int) -> None:
        """A round without a decision passed."""

    def draft_serves(self, version: str | None) -> None:
        """The draft ``version`` serves from now on. None: a draft that is not worth running."""

    def request_ended(self, rid: str) -> None:
        """Forget a request. An unknown request is ignored."""

    def report(self) -> ControllerReport:
        """The estimates of now, for people and metrics."""


@dataclass(frozen=True)
class FixedArm:
    """An arm, and whether lookup's tokens replace the draft's where lookup has any."""

    arm: Arm
    prefers_lookup: bool

    @classmethod
    def parse(cls, name: str) -> FixedArm:
        """Parse ``off``, ``lookup-N``, ``draft-N`` or ``union-N``. Raises :class:`ValueError`."""
        if name == OFF.name:
            return cls(OFF, prefers_lookup=False)
        kind, separator, steps = name.partition("-")
        if not separator or kind not in (Source.LOOKUP, Source.DRAFT, UNION):
            raise ValueError(f"{name} is not an arm: use off, lookup-N, draft-N or union-N")
        drafts = kind != Source.LOOKUP
        return cls(Arm(int(steps), drafts), prefers_lookup=kind != Source.DRAFT)

    def source(self, outlook: RequestOutlook) -> Source:
        if self.arm.steps > 0 and self.prefers_lookup and outlook.lookup_length > 0:
            return Source.LOOKUP
        if self.arm.drafts and outlook.can_draft:
            return Source.DRAFT
        return Source.NONE


class FixedArms:
    """Takes the given arms in turn, one a round, and learns nothing. The draft misses no token if any arm drafts."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` is not empty. Raises :class:`ValueError` for a name that is not an arm."""
        if not names:
            raise ValueError("a fixed sequence of arms needs an arm")
        self.arms: Final = tuple(FixedArm.parse(name) for name in names)
        self._next: Iterator[FixedArm] = itertools.cycle(self.arms)
        self._can_draft = any(fixed.arm.drafts for fixed in self.arms)
        self._drafts = self._can_draft

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        fixed = next(self._next)
        sources = tuple(fixed.source(outlook) for outlook in outlooks)
        return Decision(fixed.arm, sources, keeps_draft=self._drafts)

    def prefill_drafts(self) -> bool:
        return self._drafts

    def observe(self, outcome: Outcome) -> None:
        return

    def round_parked(self, batch_size: int) -> None:
        return

    def draft_serves(self, version: str | None) -> None:
        self._drafts = self._can_draft and version is not None

    def request_ended(self, rid: str) -> None:
        return

    def report(self) -> ControllerReport:
        return ControllerReport()
