"""Pods, a world around them and rolls in each phase, for tests of single decisions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.judgement import Judgement
from aurora_operator.plan.rollout.machine import TRANSITIONS, Step, judged_step
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_operator.plan.rollout.world import Pod, RolloutPolicy, World
from aurora_protocol.agent_api import SwapPhase, SwapStatus
from tests.unit.operator.counters import counters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "pod-a", "pod-b", "pod-c"
PAUSED = "spec.rollout.paused is true"
UNJUDGED: dict[str, Any] = {"consecutive_success_limit": 0, "watch_seconds": 0}
JUDGED: dict[str, Any] = {
    "settle_seconds": 10,
    "interval_seconds": 10,
    "min_requests": 50,
    "consecutive_success_limit": 2,
    "watch_seconds": 60,
}


def pod(name: str, version: int | None = 0, **more: Any) -> Pod:
    ready = more.get("ready", True)
    known = {
        "ready": ready,
        "kubernetes_ready": ready,
        "version": version,
        "checksum": f"sum-{version}",
        "lone_restarts": 0,
    }
    return Pod(name, **{**known, **more})


def world(*pods: Pod, now: datetime = NOW, policy: dict[str, Any] | None = None, **more: Any) -> World:
    rules = RolloutPolicy.model_validate({"analysis": UNJUDGED, **(policy or {})})
    paused = PAUSED if rules.paused else ""
    known = {"now": now, "active": 0, "epoch": 3, "pods": pods, "policy": rules, "promotable": {1}, "paused": paused}
    return World(**{**known, **more})


def step(world: World, stored: Roll) -> Step:
    """The next step, which must be what the table says."""
    judgement, made = judged_step(world, stored)
    check_row(judgement, stored, made)
    return made


def check_row(judgement: Judgement, stored: Roll, made: Step) -> None:
    """The step of a reconcile must be what the row of its phase and judgement says."""
    phase = RolloutPhase.IDLE if stored.version is None else stored.phase
    (row,) = [row for row in TRANSITIONS if phase in row.phases and row.judgement is type(judgement)]
    assert made.rollout.phase in (row.leads_to or (phase,))
    assert made.event in ("", *row.events)
    assert row.channel or made.advance is None
    assert row.pods or not made.swaps


def rolling(phase: RolloutPhase = RolloutPhase.ROLLING, **more: Any) -> Roll:
    """A roll of version 1. Its canary passed, unless ``phase`` says otherwise."""
    known = {"phase": phase, "version": 1, "epoch": 4, "started": NOW, "progressed": NOW, "total": 2}
    return Roll(**{**known, **more})


def traffic(seconds: float, *, length: float = 2.0, boot: str = "b") -> dict[str, Any]:
    """A pod's engine after ``seconds`` of ten requests a second."""
    return {"boot": boot, "counters": counters(int(seconds * 10), length)}


BASELINE = counters(1000, 2.0)


def canary(lone_restarts: dict[str, int] | None = None, **more: Any) -> Roll:
    """The canary has its draft; its window begins now."""
    state = AnalysisState(**{"baseline": BASELINE, "window_begins": NOW, **more})
    return rolling(RolloutPhase.JUDGING, analysis=state, lone_restarts=lone_restarts or {}, updated=1)


def watching(**more: Any) -> Roll:
    state = AnalysisState(**{"baseline": BASELINE, "window_begins": NOW, **more})
    return rolling(RolloutPhase.JUDGING, promoted=True, analysis=state)


FAILED = SwapStatus(phase=SwapPhase.FAILED, version=1, epoch=4, error="shapes differ")
