"""What the controller says about itself, for ``speculation.json``, metrics and the status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook

SPEEDUP_MEMORY: Final = 0.998
"""Weight that earlier rounds keep in the speedup with each further one: about 500 rounds count."""


@dataclass(frozen=True)
class CostCell:
    """The measured time of an arm.

    Attributes:
        batch_size: a typical size of the batches that were timed in this cell.
        samples: rounds that were timed.
    """

    arm: Arm
    batch_size: int
    milliseconds: float
    samples: int


@dataclass(frozen=True)
class ControllerReport:
    """Counters since the start of the engine, and estimates of now.

    Attributes:
        rounds: rounds that were observed.
        exploring_rounds: rounds that ran in order to learn.
        rounds_by_arm: rounds by arm; their sum is ``rounds``.
        proposed_by_source: proposed tokens by source. ``NONE`` proposes nothing.
        accepted_by_source: accepted tokens by source, without bonus tokens.
        costs: the cost table.
        speedup_over_off: tokens per second over those that rounds without speculation would have made in the recent
            past. An estimate from the cost table. None: no round was timed.
        saved_seconds: time that speculation saved in the timed rounds, by the same estimate. None: not estimated.
    """

    rounds: int
    exploring_rounds: int
    rounds_by_arm: Mapping[Arm, int]
    proposed_by_source: Mapping[Source, int]
    accepted_by_source: Mapping[Source, int]
    costs: tuple[CostCell, ...]
    speedup_over_off: float | None
    saved_seconds: float | None = None

    def share(self, arm: Arm) -> float:
        """The share of rounds that ``arm`` had. 0 before the first round."""
        return self.rounds_by_arm.get(arm, 0) / self.rounds if self.rounds else 0.0


@dataclass
class RoundCounters:
    """The counters behind a report."""

    exploring_rounds: int = 0
    rounds_by_arm: Counter[Arm] = field(default_factory=Counter)
    proposed: Counter[Source] = field(default_factory=Counter)
    accepted: Counter[Source] = field(default_factory=Counter)
    own_milliseconds: float = 0.0
    off_milliseconds: float = 0.0
    saved_milliseconds: float = 0.0

    def count(self, decision: Decision, outlooks: Sequence[RequestOutlook], accepted: Sequence[int]) -> None:
        """Count a round and its tokens."""
        steps = decision.arm.steps
        self.rounds_by_arm[decision.arm] += 1
        self.exploring_rounds += decision.explores
        for outlook, source, right in zip(outlooks, decision.sources, accepted, strict=True):
            if source is not Source.NONE:
                self.proposed[source] += steps if source is Source.DRAFT else min(steps, outlook.lookup_length)
                self.accepted[source] += right

    def compare_with_off(self, milliseconds: float, off_milliseconds: float) -> None:
        """A round took ``milliseconds``. Rounds without speculation would have taken ``off_milliseconds``."""
        self.own_milliseconds = self.own_milliseconds * SPEEDUP_MEMORY + milliseconds
        self.off_milliseconds = self.off_milliseconds * SPEEDUP_MEMORY + off_milliseconds
        self.saved_milliseconds += off_milliseconds - milliseconds

    def report(self, costs: Iterable[tuple[Arm, int, float, int]]) -> ControllerReport:
        """The report with this cost table: arm, batch size, milliseconds and samples of each cell."""
        return ControllerReport(
            rounds=self.rounds_by_arm.total(),
            exploring_rounds=self.exploring_rounds,
            rounds_by_arm=dict(self.rounds_by_arm),
            proposed_by_source=dict(self.proposed),
            accepted_by_source=dict(self.accepted),
            costs=tuple(CostCell(*cell) for cell in costs),
            speedup_over_off=self.off_milliseconds / self.own_milliseconds if self.own_milliseconds else None,
            saved_seconds=self.saved_milliseconds / 1000,
        )
