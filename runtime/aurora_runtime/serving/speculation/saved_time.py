"""Averages how much time speculation saves the engine, over about the last day.

Why: what a draft saves depends on how busy the engine is. Both change with the time of day, so a figure of one minute
cannot be compared with what training costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from aurora_protocol.agent_api import MAX_SPEEDUP, SavedTime

MEMORY_SECONDS: Final = 86400.0
"""Age at which an observation counts 1/e of a new one."""


@dataclass
class SavedTimeAverage:
    """The saved time of one engine start, from observations in the order of time."""

    _started: float | None = field(default=None, init=False)
    _last: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    """Time and total of the last observation."""
    _weighted: tuple[float, float] = field(default=(0.0, 0.0), init=False)
    """Saved seconds and seconds, older ones with less weight."""

    def observe(self, seconds: float, total_saved_seconds: float) -> SavedTime | None:
        """Take an observation, and return the average. None until time passed since the first one.

        Args:
            seconds: a clock that never goes back.
            total_saved_seconds: seconds that speculation saved since the engine started.
        """
        if self._started is None:
            self._started, self._last = seconds, (seconds, total_saved_seconds)
            return None
        passed, saved = seconds - self._last[0], total_saved_seconds - self._last[1]
        kept = math.exp(-passed / MEMORY_SECONDS)
        self._weighted = (self._weighted[0] * kept + saved, self._weighted[1] * kept + passed)
        self._last = (seconds, total_saved_seconds)
        if not self._weighted[1]:
            return None
        share = self._weighted[0] / self._weighted[1]
        return SavedTime(share=min(max(share, -1.0), MAX_SPEEDUP), observed_seconds=seconds - self._started)
