"""The trainer's counts as counters that do not fall until the operator restarts or the lineage changes. Pure.

A trainer that restarts goes on from its last saved state, so the counts of its record fall. Prometheus takes a counter
that falls for one that began at 0 again, and ``rate`` would count all that was ever trained once more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainerCounts:
    """Steps and tokens of one lineage."""

    lineage: int | None = None
    steps: int = 0
    trained_tokens: int = 0

    def highest(self, newer: TrainerCounts) -> TrainerCounts:
        """``newer``, where no count is lower than it was. Another lineage begins anew, an unknown one is the same."""
        known = newer.lineage is not None and self.lineage is not None
        if known and newer.lineage != self.lineage:
            return newer
        lineage = self.lineage if newer.lineage is None else newer.lineage
        return TrainerCounts(lineage, max(self.steps, newer.steps), max(self.trained_tokens, newer.trained_tokens))
