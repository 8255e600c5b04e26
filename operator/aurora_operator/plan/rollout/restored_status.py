"""A roll's status as this look may rely on it: its times and its pods are checked against the world first. Pure.

Invariants: no stored time lies ahead, so a clock that was set back delays nothing; deadlines count only time in which
the operator looked (``observed_time``); pods that exist no more are forgotten, so what is remembered of
pods stays as small as the Deployment, however long a roll is held.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from aurora_api.v1alpha1.status import AnalysisStatus, RolloutPhase, RolloutStatus
from aurora_operator.plan.rollout.facts import World


def recalled(world: World, rollout: RolloutStatus) -> RolloutStatus:
    """``rollout`` with what the world says about its times and pods."""
    update: dict[str, Any] = {
        "epoch": max(rollout.epoch, world.epoch) + (1 if world.fenced else 0),
        "started": _past(rollout.started, world.now),
        "progressed": _past(rollout.progressed, world.now),
    }
    if world.resumed and rollout.phase is not RolloutPhase.IDLE:
        update["progressed"] = world.now
    names = {pod.name for pod in world.pods}
    update["asked"] = {name: boot for name, boot in rollout.asked.items() if name in names}
    if rollout.analysis is not None:
        update["analysis"] = _analysis(world, rollout.analysis, names)
    return rollout.model_copy(update=update)


def _past(time: datetime | None, now: datetime) -> datetime | None:
    return None if time is None else min(time, now)


def _analysis(world: World, state: AnalysisStatus, names: set[str]) -> AnalysisStatus:
    settle = timedelta(seconds=world.policy.analysis.settle_seconds if state.settling else 0)
    missing = _past(state.missing_since, world.now)
    update = {
        "since": _past(state.since, world.now + settle),
        "missing_since": world.now if missing is not None and world.resumed else missing,
        "pods": [window for window in state.pods if window.name in names],
    }
    return state.model_copy(update=update)
