"""Which speculators of this process restart because of an upgrade of the operator or measure, and which wait.

Why: each speculator has a loop of its own, and the order of their restarts concerns them all. The measurements of one
namespace take turns, because each may take GPUs for an hour: all at once, they would take a team's whole quota.

Invariants: a loop takes its turn and reports it without another loop in between, because both happen between two
awaits of one event loop. The fleet holds nothing that the loops do not observe again: after a restart of the operator
no turn to restart is given before every loop has reported. Two measurements of a namespace may overlap then, and while
the store of the speculator that measures does not answer: its loop cannot tell, and must not hold up the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from aurora_operator import metrics
from aurora_operator.observe.observed import FleetView
from aurora_operator.plan.actions import MeasurementStage
from aurora_operator.plan.operator_upgrade import UpgradeDecision, UpgradeStage

Key = tuple[str, str]
"""Namespace and name of a speculator."""
START_SECONDS = 30.0
"""No turn is given for this long after the first loop started: more loops may follow."""
MAX_UNKNOWN_SECONDS = 600.0
"""Speculators that could not be observed for this long no longer hold up the order."""
_SHOWN = {"waiting": UpgradeStage.WAITING, "restarting": UpgradeStage.RESTARTING, "failed": UpgradeStage.FAILED}


class Fleet:
    """The upgrade stages of all speculators with a loop. All methods run on one event loop, but for Prometheus' count.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_seconds = 0.0
        self._unknown: set[Key] = set()
        self._decisions: dict[Key, UpgradeDecision | None] = {}
        self._measurements: dict[Key, MeasurementStage] = {}
        """The speculators that measure, or wait for their turn to. The one that has waited longest comes first."""
        for name, stage in _SHOWN.items():
            metrics.UPGRADES.labels(name).set_function(partial(self._count, stage))

    def expect(self, key: Key) -> None:
        """A loop starts, which will report."""
        if not self._decisions and not self._unknown:
            self._started_seconds = self._clock()
        if key not in self._decisions:
            self._unknown.add(key)

    def forget(self, key: Key) -> None:
        """Remove all that is known about the speculator."""
        self._unknown.discard(key)
        self._decisions.pop(key, None)
        self._measurements.pop(key, None)

    def view(self, key: Key) -> FleetView:
        """The fleet without the speculator ``key``."""
        elapsed_seconds = self._clock() - self._started_seconds
        all_known = not self._unknown - {key} or elapsed_seconds >= MAX_UNKNOWN_SECONDS
        return FleetView(
            known=all_known and elapsed_seconds >= START_SECONDS,
            restarting=self._count(UpgradeStage.RESTARTING, key),
            failed=self._count(UpgradeStage.FAILED, key),
            measured_first=self._measured_before(key),
        )

    def _measured_before(self, key: Key) -> str:
        """The speculator of the same namespace that is measured before ``key``; empty: it is the turn of ``key``."""
        order = [other for other in self._measurements if other[0] == key[0]]
        earlier = order[: order.index(key)] if key in order else order
        measuring = [o for o in order if o != key and self._measurements[o] is MeasurementStage.MEASURING]
        return next((name for _, name in (*measuring, *earlier)), "")

    def report(self, key: Key, decision: UpgradeDecision | None) -> None:
        """Take over what a loop has decided for its speculator.

        None: its spec cannot be used, or it is being deleted. It takes no turn, and gives back one that it has, because
        nobody can tell when such a turn would end.
        """
        self._unknown.discard(key)
        self._decisions[key] = decision
        if decision is None:
            self._measurements.pop(key, None)

    def report_measurement(self, key: Key, stage: MeasurementStage | None) -> None:
        """Take over whether a loop's candidate is measured, or waits for its turn. None: neither."""
        if stage is None:
            self._measurements.pop(key, None)
        else:
            self._measurements[key] = stage

    def _count(self, stage: UpgradeStage, without: Key | None = None) -> int:
        """How many speculators, besides ``without``, are in ``stage``."""
        decisions = list(self._decisions.items())  # at once, because Prometheus asks in another thread
        return sum(made is not None and made.stage is stage for key, made in decisions if key != without)
