"""Everything that one reconcile derives from the world and the roll, computed once. Pure.

:func:`facts_of` brings the stored roll up to what the world says, counts crashed engines, and judges the present window
of live traffic. ``judgement`` and ``machine`` compute none of this again.

Invariants:

- Deadlines count only time in which the operator observed (``reconciler.ObservedTime``), so a clock that was set delays
  nothing. They do not run while a roll waits for traffic, for a person or for pods to become ready, and start again in
  full afterwards. Pods that no longer exist are dropped.
- A crash counts against the version only when the operator was observing and the engine crashed alone. A crash together
  with the pod's agent says more about the machine.
  An engine that hangs ends too: its probes restart it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout import analysis as live_analysis
from aurora_operator.plan.rollout.analysis import MAX_JUDGEMENT_DEADLINES, PodCounters
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_operator.plan.rollout.world import Pod, World, confirmed


@dataclass(frozen=True)
class RolloutFacts:
    """The facts of one reconcile. Lists of pods are in the order of :attr:`World.pods`."""

    world: World
    roll: Roll
    """The stored roll, brought up to what the world says, with crashed engines counted and live traffic judged."""
    ready: tuple[Pod, ...]
    updated: tuple[Pod, ...]
    """Ready pods that serve the roll's version."""
    third_version_pods: tuple[str, ...]
    """Ready pods that serve neither the active nor the rolled version, and are not swapping. A pod that started without
    a draft is one of them, and is no evidence about any version."""
    uncertain_pods: int
    """Number of pods that may come up with the roll's version: they had it or were asked for it, and are not ready now.

    A pod that joined since comes up with the active version.
    """
    all_updated: bool
    """Every pod that may be answering requests serves the roll's version, and there is such a pod."""
    settled: bool
    """Every pod that may be answering requests serves the active version. There are two such pods, or one in all."""
    too_many_not_ready: bool
    """More pods than the policy allows are not ready, so the ready ones must not swap."""
    weights_differ: bool
    """Pods hold different weights under the roll's version."""
    no_progress: bool
    """The roll is under way, and made no progress for longer than the deadline."""
    starved: bool
    """The canary, or the baseline before it, waits for traffic that does not come."""
    watch_over: bool
    """The promoted version was watched for ``watchSeconds``."""

    @property
    def version(self) -> int:
        """The roll's version. Call only where there is one: in every phase but Idle."""
        assert self.roll.version is not None, "only an idle roll has no version"
        return self.roll.version


def facts_of(world: World, stored: Roll) -> RolloutFacts:
    """The facts of this reconcile."""
    roll = _with_crashes_counted(world, _restored(world, stored))
    version, pods = roll.version, world.pods
    updated = confirmed(pods, version)
    roll = roll.model_copy(update={"analysis": _judged(world, roll)})
    too_many_not_ready = sum(not pod.ready for pod in pods) > world.policy.max_not_ready
    watched = timedelta.max if roll.progressed is None else world.now - roll.progressed
    return RolloutFacts(
        world=world,
        roll=roll,
        ready=tuple(pod for pod in pods if pod.ready),
        updated=updated,
        third_version_pods=tuple(
            pod.name for pod in pods if pod.ready and pod.version not in (version, world.active) and not pod.swapping
        ),
        uncertain_pods=sum(pod.name in roll.lone_restarts and not pod.ready for pod in pods),
        all_updated=_all_serve(pods, version),
        settled=_all_serve(pods, world.active) and sum(pod.ready for pod in pods) >= min(2, len(pods)),
        too_many_not_ready=too_many_not_ready,
        weights_differ=len({pod.checksum for pod in updated}) > 1,
        no_progress=_no_progress(world, roll),
        starved=not too_many_not_ready and _starved(world, roll),
        watch_over=watched >= timedelta(seconds=world.policy.analysis.watch_seconds),
    )


def _all_serve(pods: tuple[Pod, ...], version: int | None) -> bool:
    """Whether every pod that may be answering requests serves ``version``, and there is such a pod."""
    return any(pod.ready for pod in pods) and len(confirmed(pods, version)) == sum(pod.kubernetes_ready for pod in pods)


def _deadline(world: World) -> timedelta:
    return timedelta(seconds=world.policy.progress_deadline_seconds)


def _live(world: World, version: int | None) -> dict[str, PodCounters]:
    """Counters of the pods that serve ``version``."""
    if version is None:
        return {}
    return {pod.name: PodCounters(pod.boot, version, pod.counters) for pod in confirmed(world.pods, version)}


# the stored roll -----------------------------------------------------------------------------------------------------


def _restored(world: World, roll: Roll) -> Roll:
    """``roll`` with its times, pods and epoch brought up to what the world says."""
    epoch = max(roll.epoch, world.epoch)
    if world.refused_by_epoch > epoch:
        # The status was lost. Had it known the pod's epoch, this operator would follow the other's decision.
        epoch = world.refused_by_epoch + 1
    update: dict[str, Any] = {
        "phase": RolloutPhase.IDLE if roll.version is None else RolloutPhase.JUDGING if roll.promoted else roll.phase,
        "epoch": epoch,
    }
    names = {pod.name for pod in world.pods}
    if world.observation_gap and roll.progressed is not None and roll.phase is not RolloutPhase.IDLE:
        update["progressed"] = world.now
    if (state := roll.analysis) is not None:
        begins, latest = state.window_begins, world.now + timedelta(seconds=world.policy.analysis.settle_seconds)
        windows = [window for window in state.windows if window.name in names]
        window_begins = None if begins is None else min(begins, latest)
        update["analysis"] = state.model_copy(update={"window_begins": window_begins, "windows": windows})
    return roll.model_copy(update=update)


# engines that crash --------------------------------------------------------------------------------------------------


def _with_crashes_counted(world: World, roll: Roll) -> Roll:
    """``roll`` with a count of the engines that crashed alone, while serving the version or swapping to it."""
    if roll.phase is RolloutPhase.IDLE:
        return roll
    before, kept = roll.lone_restarts, {}
    crashes = roll.engine_crashes
    for pod in world.pods:
        count = before.get(pod.name) if pod.lone_restarts is None else pod.lone_restarts
        if count is None:
            continue
        if pod.name in before and not world.observation_gap:
            crashes += max(count - before[pod.name], 0)
        is_back = pod.ready and pod.version != roll.version and not pod.swapping
        if pod.confirms(roll.version) or (pod.name in before and not is_back):
            kept[pod.name] = count
    return roll.model_copy(update={"lone_restarts": kept, "engine_crashes": crashes})


# progress and traffic ------------------------------------------------------------------------------------------------


def _no_progress(world: World, roll: Roll) -> bool:
    return roll.under_way and roll.progressed is not None and world.now - roll.progressed > _deadline(world)


def _starved(world: World, roll: Roll) -> bool:
    state = roll.analysis
    if state is None or state.window_begins is None or not roll.under_way or roll.phase is not RolloutPhase.JUDGING:
        return False
    waits_for_people = world.paused or world.pin_set
    return not waits_for_people and world.now - state.window_begins > MAX_JUDGEMENT_DEADLINES * _deadline(world)


def _judged(world: World, roll: Roll) -> AnalysisState | None:
    """The live analysis, this reconcile's traffic included. Before the first swap it measures the baseline."""
    state, version = roll.analysis, roll.version
    if state is None or version is None or roll.phase is RolloutPhase.IDLE:
        return state
    rules, live = world.policy.analysis, _live(world, version)
    peers = _live(world, world.active) if version != world.active else {}
    if state.baseline is None and (world.paused or world.pin_set or roll.paused):
        return state.model_copy(update={"window_begins": None, "windows": []})  # else it would be old at the first swap
    if state.baseline is None:
        return live_analysis.measure_baseline(state, peers, world.active, rules, world.now)
    if not live or state.serving_digest != world.serving_digest:
        return state
    return live_analysis.judge(state, live, peers, version, rules, now=world.now)
