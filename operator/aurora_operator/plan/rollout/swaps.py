"""Chooses the pods to ask for a version. A *stray* pod serves another version than the active one. Pure.

Invariants: a pod is only ever asked for the active version or for the one being rolled out. No pod is asked while it
swaps, except to give up the download of another version, nor soon after a failed swap to the same version or its
repetition (:func:`_pause`), whatever the pod's clock says. Pods that are not ready are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from aurora_operator.plan.rollout.facts import RolloutFacts
from aurora_operator.plan.rollout.world import Pod
from aurora_protocol.agent_api import SwapPhase

RETRY_AFTER = timedelta(seconds=5)
"""How long a pod is left alone after its first failed swap. Each further one doubles the time."""
MOST_RETRY_AFTER = timedelta(minutes=1)
"""The longest such time. Each try may pause the engine's generation, and a swap may fail for good."""


def return_strays(facts: RolloutFacts, limit: int) -> dict[str, int]:
    """Swaps that return stray pods to the active version, at most ``limit`` at a time."""
    world = facts.world
    return _to_active(facts, [pod for pod in world.pods if pod.version != world.active], limit)


def return_all(facts: RolloutFacts) -> dict[str, int]:
    """Swaps that return every pod to the active version at once, also a pod that only stages another version.

    The agent then gives the download up. Else it would load the other version at the end of the download.
    """
    world = facts.world
    asked = [
        pod.name
        for pod in world.pods
        if pod.ready
        and not _failed_lately(facts, pod, world.active)
        and (_stages_another(pod, world.active) or (pod.version != world.active and not pod.swapping))
    ]
    return dict.fromkeys(sorted(asked), world.active)


def _stages_another(pod: Pod, version: int) -> bool:
    return pod.swap.phase is SwapPhase.STAGING and pod.swap.version != version


def return_rejected(facts: RolloutFacts) -> dict[str, int]:
    """Swaps of pods that came up with a rejected version. These pods return even during a pause."""
    world = facts.world
    stray = [pod for pod in world.pods if pod.version in world.rejected - {world.active}]
    return _to_active(facts, stray, len(world.pods))


def next_swaps(facts: RolloutFacts, wanted: int) -> dict[str, int]:
    """Swaps of further pods until ``wanted`` pods have the version or are on their way; third versions come first."""
    world, version = facts.world, facts.version
    if facts.too_many_not_ready:
        return {}
    having = [pod for pod in world.pods if pod.version == version or (pod.swapping and pod.swap.version == version)]
    others = [
        pod
        for pod in facts.ready
        if pod.version != version and not pod.swapping and not _failed_lately(facts, pod, version)
    ]
    room = min(world.policy.max_swapping - sum(pod.swapping for pod in world.pods), wanted - len(having))
    others.sort(key=lambda pod: (pod.version == world.active, pod.name))
    return dict.fromkeys([pod.name for pod in others][: max(room, 0)], version)


def retry_note(facts: RolloutFacts) -> str:
    """A note about a pod that tries the version again after a transient failure: empty, or ``"; pod…"``."""
    for pod in facts.world.pods:
        swap, version = pod.swap, facts.version
        if swap.phase is SwapPhase.FAILED and swap.version == version != pod.version and swap.transient:
            return f"; {pod.name} tries again: {swap.error or 'no reason given'}"
    return ""


def _to_active(facts: RolloutFacts, stray: Iterable[Pod], limit: int) -> dict[str, int]:
    world = facts.world
    asked = [p for p in stray if p.ready and not p.swapping and not _failed_lately(facts, p, world.active)]
    room = limit - sum(pod.swapping for pod in world.pods)
    return dict.fromkeys(sorted(pod.name for pod in asked)[: max(room, 0)], world.active)


def retry_state(facts: RolloutFacts, swaps: Mapping[str, int]) -> dict[str, dict[str, datetime] | dict[str, int]]:
    """When each pod was last asked again after a failed swap, and how often in a row, ``swaps`` included."""
    now, pods = facts.world.now, facts.world.pods
    again = {pod.name for pod in pods if pod.name in swaps and _failed(pod, swaps[pod.name])}
    other = swaps.keys() - again  # asked for the first time, or for another version
    failing = {pod.name for pod in pods if pod.swapping or pod.swap.phase is SwapPhase.FAILED} - other
    retries = {name: count for name, count in facts.roll.retries.items() if name in failing}
    retries |= {name: retries.get(name, 0) + 1 for name in again}
    times = {name: at for name, at in facts.roll.retried.items() if now - at < _pause(retries.get(name, 0))}
    return {"retried": times | dict.fromkeys(again, now), "retries": retries}


def _pause(retries: int) -> timedelta:
    """How long a pod is left alone after a swap that failed once and ``retries`` times more."""
    return min(RETRY_AFTER * (1 << min(retries, 10)), MOST_RETRY_AFTER)


def _failed(pod: Pod, version: int) -> bool:
    return pod.swap.phase is SwapPhase.FAILED and pod.swap.version == version


def _failed_lately(facts: RolloutFacts, pod: Pod, version: int) -> bool:
    times, pause = (pod.swap.finished, facts.roll.retried.get(pod.name)), _pause(facts.roll.retries.get(pod.name, 0))
    lately = (at is not None and abs(facts.world.now - at) < pause for at in times)
    return _failed(pod, version) and any(lately)
