"""Which speculators of this process restart because of an upgrade of the operator, and which wait.

Why: each speculator has a loop of its own, and the order of their restarts concerns them all.

Invariants: a loop takes its turn and reports it without another loop in between, because both happen between two
awaits of one event loop. The fleet holds nothing that the loops do not observe again: after a restart of the operator
no turn is given before every loop has reported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from aurora_operator import metrics
from aurora_operator.observe.observed import FleetView
from aurora_operator.plan.upgrade.decision import UpgradeDecision, UpgradeStage

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a speculator."""
START_SECONDS = 30.0
"""No turn is given for this long after the first loop started: more loops may follow."""
MAX_UNKNOWN_SECONDS = 600.0
"""Speculators that could not be observed for this long no longer hold up the order."""


class Fleet:
    """The upgrade stages of all speculators with a loop. All methods run on one event loop.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_seconds = 0.0
        self._unknown: set[Key] = set()
        self._known: set[Key] = set()
        self._restarting: set[Key] = set()
        self._waiting: set[Key] = set()
        self._waiting_and_whole: set[Key] = set()
        self._failed: set[Key] = set()
        for stage, keys in (("waiting", self._waiting), ("restarting", self._restarting), ("failed", self._failed)):
            metrics.UPGRADES.labels(stage).set_function(partial(len, keys))

    def expect(self, key: Key) -> None:
        """A loop starts, which will report."""
        if not self._known and not self._unknown:
            self._started_seconds = self._clock()
        if key not in self._known:
            self._unknown.add(key)

    def forget(self, key: Key) -> None:
        """Remove all that is known about the speculator."""
        self._unknown.discard(key)
        self._known.discard(key)
        self._leave_order(key)

    def view(self, key: Key) -> FleetView:
        """The fleet without the speculator ``key``."""
        elapsed_seconds = self._clock() - self._started_seconds
        all_known = not self._unknown - {key} or elapsed_seconds >= MAX_UNKNOWN_SECONDS
        return FleetView(
            known=all_known and elapsed_seconds >= START_SECONDS,
            restarting=len(self._restarting - {key}),
            others_wait=bool(self._waiting_and_whole - {key}),
            failed=bool(self._failed - {key}),
        )

    def report(self, key: Key, decision: UpgradeDecision) -> None:
        """Take over what a loop has decided for its speculator."""
        pending = decision.stage in (UpgradeStage.WAITING, UpgradeStage.RESTARTING)
        failed = pending and bool(decision.failure)
        if failed and key not in self._failed:
            log.warning("%s/%s: its upgrade failed, so no further speculator restarts: %s", *key, decision.failure)
        self.forget(key)
        self._known.add(key)
        if decision.stage is UpgradeStage.RESTARTING:
            self._restarting.add(key)
        elif decision.stage is UpgradeStage.WAITING:
            self._waiting.add(key)
            if decision.whole:
                self._waiting_and_whole.add(key)
        if failed:
            self._failed.add(key)

    def report_unusable(self, key: Key) -> None:
        """The spec cannot be used, or the speculator is being deleted: it takes no turn, and gives back one it has.

        Nobody can tell when such a turn would end. Once the spec can be used again, the loop reports the restart again.
        """
        self.forget(key)
        self._known.add(key)

    def _leave_order(self, key: Key) -> None:
        for keys in (self._restarting, self._waiting, self._waiting_and_whole, self._failed):
            keys.discard(key)
