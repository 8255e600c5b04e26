"""Since when each pod with the rolled version is missing, or loads the version, and which one is late. Pure.

A pod is *missing* once it had the version, or was asked to take the version, and is not up. It is missing until
Kubernetes calls it ready. Its engine may only load its model again after one crash, which takes as long as the startup
probe allows. So each pod has a clock of its own. It also runs while the roll is held, because the missing pods may be
what holds the roll.

The clock of a pod does not run while something else than the version keeps the pod away: its node cannot be reached, or
its engine was restarted together with its agent. Nor does it run during a pause. It starts again in full afterwards.

Invariant: a pod is late only after the operator has seen it away without an interruption for the whole time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.roll import UNDER_WAY, Roll
from aurora_operator.plan.rollout.world import Pod, World
from aurora_protocol.agent_api import SwapPhase

_RUNNING_CLOCKS = frozenset({RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.WATCHING})


def with_absences(world: World, roll: Roll) -> Roll:
    """``roll`` with the clocks of the pods that are missing or that load the version.

    When a missing pod is back or gone, the roll's own deadline begins again: the roll could not go on meanwhile.
    """
    if roll.version is None or roll.phase not in _RUNNING_CLOCKS:
        return roll.model_copy(update={"missing_since": {}, "loading_since": {}})
    missing = [pod.name for pod in world.pods if _is_missing(roll, pod) and not _is_excused(roll, pod)]
    loading = [pod.name for pod in world.pods if roll.phase in UNDER_WAY and _is_loading(roll, pod)]
    update: dict[str, Any] = {
        "missing_since": _clocks(roll.missing_since, missing, world),
        "loading_since": _clocks(roll.loading_since, loading, world),
    }
    still_away = {pod.name for pod in world.pods if not _is_back(pod)}
    if roll.phase in UNDER_WAY and roll.missing_since.keys() - still_away:
        update |= {"progressed": None if roll.progressed is None else world.now}
        if roll.analysis is not None:
            update["analysis"] = roll.analysis.model_copy(update={"canary_missing_since": None})
    return roll.model_copy(update=update)


def _is_missing(roll: Roll, pod: Pod) -> bool:
    """Whether the pod had the version, or was asked to take it, and is not up now, or has not come back since.

    An engine that its agent alone calls ready is not back: it may end before its readiness probe passes, each time.
    """
    if pod.name not in roll.engine_boots or _is_back(pod):
        return False
    return not pod.up or pod.name in roll.missing_since


def _is_back(pod: Pod) -> bool:
    return pod.ready or pod.kubernetes_ready


def return_limit(world: World, name: str) -> timedelta:
    """How long the pod may be missing with the version.

    An engine may take as long to load its model as its startup probe allows. One that ends again and again gets the
    progress deadline only.
    """
    deadline = timedelta(seconds=world.policy.progress_deadline_seconds)
    return deadline if _crash_loops(world, name) else max(deadline, world.start_limit)


def late_return(world: World, roll: Roll) -> str:
    """A pod that is missing for longer than allowed, or empty."""
    return _late(roll.missing_since, lambda name: return_limit(world, name), world.now)


def late_load(world: World, roll: Roll) -> str:
    """A pod whose engine loads the version for longer than the progress deadline, or empty."""
    deadline = timedelta(seconds=world.policy.progress_deadline_seconds)
    return _late(roll.loading_since, lambda _: deadline, world.now)


def _crash_loops(world: World, name: str) -> bool:
    return any(pod.crash_loops for pod in world.pods if pod.name == name)


def _is_loading(roll: Roll, pod: Pod) -> bool:
    return pod.swap.phase is SwapPhase.SWAPPING and pod.swap.version == roll.version


def _is_excused(roll: Roll, pod: Pod) -> bool:
    """Whether a missing pod is away for a reason that says nothing about the version.

    The containers of a new pod start together too. So the engine's container must be another one than that which was
    asked for the version.
    """
    restarted = pod.container_started != roll.container_starts.get(pod.name)
    return pod.unreachable or (pod.started_together and restarted)


def _clocks(former: Mapping[str, datetime], names: Iterable[str], world: World) -> dict[str, datetime]:
    known = {} if world.observation_gap else former
    return {name: min(known.get(name, world.now), world.now) for name in names}


def _late(since: Mapping[str, datetime], limit_of: Callable[[str], timedelta], now: datetime) -> str:
    return next((name for name, at in sorted(since.items()) if now - at > limit_of(name)), "")
