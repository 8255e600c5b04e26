"""Checks the times, pods and epoch of the stored roll against the world, before a reconcile relies on them. Pure.

Invariants: no stored time lies in the future, so a clock that was set back delays nothing. Deadlines count only time
in which the operator observed (``observed_time``). Pods that no longer exist are dropped, so the state does not grow
while a roll is held.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_operator.plan.rollout.world import World


def restored(world: World, roll: Roll) -> Roll:
    """``roll`` with its times, pods and epoch brought up to what the world says."""
    epoch = _epoch(world, roll)
    fenced = world.fencing_epoch > max(roll.epoch, world.epoch)
    update: dict[str, Any] = {
        "epoch": epoch,
        # Orders of the epochs in between are not ours.
        "first_epoch": epoch if fenced and roll.first_epoch is not None else roll.first_epoch,
        "started": _not_ahead(roll.started, world.now),
        "progressed": _not_ahead(roll.progressed, world.now),
    }
    if world.observation_gap and roll.phase is not RolloutPhase.IDLE:
        update["progressed"] = world.now
    names = {pod.name for pod in world.pods}
    for field in ("engine_boots", "container_starts", "other_boots"):
        update[field] = {name: value for name, value in getattr(roll, field).items() if name in names}
    update["retries"] = {name: count for name, count in roll.retries.items() if name in names}
    update["retried"] = {n: min(at, world.now) for n, at in roll.retried.items() if n in names}
    if roll.analysis is not None:
        update["analysis"] = _analysis(world, roll.analysis, names)
    return roll.model_copy(update=update)


def _epoch(world: World, roll: Roll) -> int:
    """The epoch of this operator's requests: higher than any that a pod named, unless the status knows that one too.

    The status was lost when it knows a lower epoch than a pod. When the status knows the pod's epoch, another operator
    has decided meanwhile, and this operator goes on from that decision.
    """
    known = max(roll.epoch, world.epoch)
    return world.fencing_epoch + 1 if world.fencing_epoch > known else known


def _not_ahead(time: datetime | None, now: datetime) -> datetime | None:
    return None if time is None else min(time, now)


def _analysis(world: World, state: AnalysisState, names: set[str]) -> AnalysisState:
    settle = timedelta(seconds=world.policy.analysis.settle_seconds if state.settling else 0)
    missing = _not_ahead(state.canary_missing_since, world.now)
    update = {
        "window_begins": _not_ahead(state.window_begins, world.now + settle),
        "canary_missing_since": world.now if missing is not None and world.observation_gap else missing,
        "windows": [window for window in state.windows if window.name in names],
    }
    return state.model_copy(update=update)
