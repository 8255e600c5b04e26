"""Who decides a round: the controller, or a fixed sequence of arms for measurements and tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.serving.speculation.controller_report import ControllerReport
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook

UNION: Final = "union"
EMPTY_REPORT: Final = ControllerReport(0, 0, {}, {}, {}, (), None)


class Learner(Protocol):
    """Learns from the rounds and the ends of requests that the worker reports."""

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None: ...

    def request_ended(self, rid: str) -> None: ...


class Policy(Learner, Protocol):
    """Chooses each round and learns from it. The methods are those of the controller."""

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision: ...

    def draft_serves(self, version: str) -> None: ...

    def report(self) -> ControllerReport: ...


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
        if self.arm.drafts and outlook.pending != CANNOT_DRAFT:
            return Source.DRAFT
        return Source.NONE


class FixedArms:
    """Takes the given arms in turn, one a round, and learns nothing."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` is not empty. Raises :class:`ValueError` for a name that is not an arm."""
        if not names:
            raise ValueError("a fixed sequence of arms needs an arm")
        self.arms: Final = tuple(FixedArm.parse(name) for name in names)
        self._next: Iterator[FixedArm] = itertools.cycle(self.arms)

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        fixed = next(self._next)
        return Decision(fixed.arm, tuple(fixed.source(outlook) for outlook in outlooks), explores=False)

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None:
        return

    def draft_serves(self, version: str) -> None:
        return

    def request_ended(self, rid: str) -> None:
        return

    def report(self) -> ControllerReport:
        return EMPTY_REPORT
