"""Counts what rounds proposed and accepted, and writes ``speculation.json`` for the agent.

Invariant: counting costs the scheduler a few additions a round. A thread writes the file.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from typing import Final

from aurora_protocol.agent_api import MAX_SPEEDUP, SavedTime
from aurora_runtime.engine.arms import OFF, Source
from aurora_runtime.serving.pod_files import PodFolder, SourceCounters, SpeculationState, write_atomically
from aurora_runtime.serving.speculation.controller import Controller
from aurora_runtime.serving.speculation.rounds import Outcome, Round

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 1.0
SAVED_TIME_MEMORY_SECONDS: Final = 86400.0
"""Age at which an observation of the saved time counts 1/e of a new one. What a draft saves changes with the time of
day, so a figure of one minute cannot be compared with what training costs."""


class SavedTimeAverage:
    """How much time speculation saves the engine, over about the last day. Idle time counts."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._last = (0.0, 0.0)  # time and total of the last observation
        self._saved = self._passed = 0.0  # seconds, older ones with less weight

    def observe(self, seconds: float, total_saved_seconds: float) -> SavedTime | None:
        """Take the saved time since the engine's start, and return the average. None until time has passed."""
        if self._started is None:
            self._started, self._last = seconds, (seconds, total_saved_seconds)
            return None
        passed, saved = seconds - self._last[0], total_saved_seconds - self._last[1]
        kept = math.exp(-passed / SAVED_TIME_MEMORY_SECONDS)
        self._saved, self._passed = self._saved * kept + saved, self._passed * kept + passed
        self._last = (seconds, total_saved_seconds)
        if not self._passed:
            return None
        share = min(max(self._saved / self._passed, -1.0), MAX_SPEEDUP)
        return SavedTime(share=share, observed_seconds=seconds - self._started)


class _SourceCount:
    """The counters of one source, by position in the chain, from 0."""

    def __init__(self) -> None:
        self.proposed: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()

    def record(self) -> SourceCounters:
        proposed, accepted = (tuple(at[i] for i in range(len(at))) for at in (self.proposed, self.accepted))
        return SourceCounters(proposed_at=proposed, accepted_at=accepted)


class RoundReport:
    """The counters of one engine start."""

    def __init__(self, folder: PodFolder, boot: str, controller: Controller) -> None:
        self._folder = folder
        self._boot = boot
        self._controller = controller
        self._rounds: Counter[str] = Counter()
        self._counts = {source: _SourceCount() for source in (Source.LOOKUP, Source.DRAFT)}
        self._saved_time = SavedTimeAverage()
        self.errors = 0

    def add(self, current: Round, outcome: Outcome) -> None:
        """A round ended. It says nothing about a request that had ended before."""
        self._rounds[current.decision.arm.name] += 1
        for place, source in enumerate(current.decision.sources):
            if source is Source.NONE or not outcome.made[place]:
                continue
            proposed, count = current.proposed(place), self._counts[source]
            count.proposed.update(range(proposed))
            count.accepted.update(range(min(outcome.accepted[place], proposed)))

    def add_parked(self) -> None:
        """A round was off without a decision."""
        self._rounds[OFF.name] += 1

    def state(self) -> SpeculationState:
        speedup, saved_seconds = self._controller.speedup_over_off, self._controller.saved_seconds
        return SpeculationState(
            boot=self._boot,
            errors=self.errors,
            rounds_by_arm=dict(self._rounds),
            lookup=self._counts[Source.LOOKUP].record(),
            draft=self._counts[Source.DRAFT].record(),
            speedup_over_off=None if speedup is None else min(speedup, MAX_SPEEDUP),
            saved_time=None if speedup is None else self._saved_time.observe(time.monotonic(), saved_seconds),
        )

    def write(self) -> None:
        write_atomically(self._folder.speculation, self.state().to_json())

    def start(self) -> None:
        """Write the file now and every :data:`REPORT_SECONDS`, from a thread that ends with the process."""
        threading.Thread(target=self._run, name="aurora-speculation", daemon=True).start()

    def _run(self) -> None:
        wait = threading.Event()
        while True:
            try:
                self.write()
            except Exception:  # the thread's outermost loop: a full disk, or counters that changed while they were read
                log.warning("aurora speculation: speculation.json was not written", exc_info=True)
            wait.wait(REPORT_SECONDS)
