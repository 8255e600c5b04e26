"""Everything that one reconcile derives from the world and the roll, computed once. Pure.

:func:`facts_of` brings the stored roll up to what the world says, counts crashed engines, runs the clocks of pods that
are away, and judges the present window of live traffic. ``judgement`` and ``machine`` compute none of this again.

Invariants:

- Deadlines count only time in which the operator observed (``reconciler.ObservedTime``), so a clock that was set delays
  nothing. They do not run while a roll waits for traffic, for a person or for pods to become ready, and start again in
  full afterwards. Pods that no longer exist are dropped.
- A crash counts against the version only when the operator was observing and the engine crashed alone. A crash together
  with the pod's agent says more about the machine.
- A pod is *missing* when it had the version, or was asked to take it, and Kubernetes does not call it ready. Its engine
  may only load its model again after one crash, which may take an hour. So each pod has a clock of its own, which also
  runs while the roll is held: the missing pods may be what holds the roll. The clock does not run during a pause.
  Whether the pod's node is at fault is not asked: Kubernetes deletes the pods of a lost node long before.
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
    late: str
    """Which pod did not become ready with the roll's version in its time; empty when none."""
    no_progress: bool
    """The roll made no progress for longer than the deadline, and no pod is missing."""
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
    roll = with_absences(world, _with_crashes_counted(world, _restored(world, stored)))
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
        uncertain_pods=sum(pod.name in roll.engine_boots and not pod.ready for pod in pods),
        all_updated=_all_serve(pods, version),
        settled=_all_serve(pods, world.active) and sum(pod.ready for pod in pods) >= min(2, len(pods)),
        too_many_not_ready=too_many_not_ready,
        weights_differ=len({pod.checksum for pod in updated}) > 1,
        late=_late(world, roll),
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
    if world.fencing_epoch > epoch:
        # The status was lost. Had it known the pod's epoch, this operator would follow the other's decision.
        epoch = world.fencing_epoch + 1
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
    update["engine_boots"] = {name: boot for name, boot in roll.engine_boots.items() if name in names}
    return roll.model_copy(update=update)


# engines that crash --------------------------------------------------------------------------------------------------


def _with_crashes_counted(world: World, roll: Roll) -> Roll:
    """``roll`` with a count of the engines that crashed alone, while serving the version or swapping to it."""
    if roll.phase is RolloutPhase.IDLE:
        return roll
    boots = {pod.name: pod.boot for pod in world.pods if pod.ready}
    crashed = {name for name, boot in roll.engine_boots.items() if boots.get(name, boot) != boot}
    alone = crashed - {pod.name for pod in world.pods if pod.started_together}
    kept = {name: boot for name, boot in roll.engine_boots.items() if name not in crashed}
    serving = {pod.name: pod.boot for pod in confirmed(world.pods, roll.version)}
    crashes = roll.engine_crashes + (0 if world.observation_gap else len(alone))
    return roll.model_copy(update={"engine_boots": kept | serving, "engine_crashes": crashes})


# pods that are away --------------------------------------------------------------------------------------------------


def with_absences(world: World, roll: Roll) -> Roll:
    """``roll`` with the clocks of the pods that are missing.

    When a missing pod is back or gone, the roll's own deadline begins again: the roll could not go on meanwhile.
    """
    if roll.phase is RolloutPhase.IDLE or roll.paused:
        return roll.model_copy(update={"missing_since": {}})
    away = [pod.name for pod in world.pods if not pod.kubernetes_ready]
    known = {} if world.observation_gap else roll.missing_since
    missing = {name: known.get(name, world.now) for name in away if name in roll.engine_boots}
    update: dict[str, Any] = {"missing_since": missing}
    if roll.under_way and roll.missing_since.keys() - set(away):
        update["progressed"] = None
    return roll.model_copy(update=update)


def return_limit(world: World, name: str) -> timedelta:
    """How long the pod may be missing with the version.

    An engine may take as long to load its model as its startup probe allows. One that ends again and again gets the
    progress deadline only.
    """
    crash_loops = any(pod.crash_loops for pod in world.pods if pod.name == name)
    return _deadline(world) if crash_loops else max(_deadline(world), world.start_limit)


def _late(world: World, roll: Roll) -> str:
    for name, since in sorted(roll.missing_since.items()):
        limit = return_limit(world, name)
        if world.now - since > limit:
            return f"pod {name} did not come back with version {roll.version} for {limit.total_seconds():.0f} s"
    return ""


# progress and traffic ------------------------------------------------------------------------------------------------


def _no_progress(world: World, roll: Roll) -> bool:
    if roll.progressed is None or roll.missing_since:
        return False
    return world.now - roll.progressed > _deadline(world)


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
