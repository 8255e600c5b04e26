"""What the controller says about itself, for ``speculation.json``, metrics and the status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aurora_runtime.serving.speculation.arms import Arm, Source


@dataclass(frozen=True)
class CostCell:
    """The measured time of an arm.

    Attributes:
        batch_size: the size of the last batch that was timed in this cell.
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
            past. An estimate from the cost table. None: no round without speculation was timed.
    """

    rounds: int
    exploring_rounds: int
    rounds_by_arm: Mapping[Arm, int]
    proposed_by_source: Mapping[Source, int]
    accepted_by_source: Mapping[Source, int]
    costs: tuple[CostCell, ...]
    speedup_over_off: float | None

    def share(self, arm: Arm) -> float:
        """The share of rounds that ``arm`` had. 0 before the first round."""
        return self.rounds_by_arm.get(arm, 0) / self.rounds if self.rounds else 0.0
