"""Everything that one reconcile derives from the world and the roll, computed once.

:func:`facts_of` checks the stored roll against the world, counts crashed engines, judges the present window of live
traffic, and evaluates pods and deadlines. ``judgement`` and ``transition`` read these facts and compute none of them
again.

Invariants: deadlines do not run while a roll waits for traffic, for a person or for pods to become ready, and start
again in full afterwards. Only the clock of a pod that is away with the version may run on (``absences``). A crash
counts against the version only when the operator was observing and the engine crashed alone. A crash together with the
pod's agent, or with engines of another version, says more about the machine. Engines of other versions that crash
during the roll are counted too, because whatever ends them, such as a client's request, may end any engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.absences import late_load, late_return, with_absences
from aurora_operator.plan.rollout.analysis import live_analysis
from aurora_operator.plan.rollout.analysis.live_analysis import PodCounters
from aurora_operator.plan.rollout.restored_status import restored
from aurora_operator.plan.rollout.roll import JUDGED_PHASES, AnalysisState, Roll
from aurora_operator.plan.rollout.world import Pod, World, confirmed, container_starts


@dataclass(frozen=True)
class RolloutFacts:
    """The facts of one reconcile. Lists of pods are in the order of :attr:`World.pods`."""

    world: World
    roll: Roll
    """The stored roll, checked against the world, with crashed engines counted."""
    phase: RolloutPhase
    """The roll's phase; Idle where there is no version to roll out."""
    deadline: timedelta
    """The progress deadline."""
    ready: tuple[Pod, ...]
    updated: tuple[Pod, ...]
    """Ready pods that serve the roll's version."""
    third_version_pods: tuple[str, ...]
    """Ready pods that serve neither the active nor the rolled version, and are not swapping."""
    uncertain_pods: int
    """Number of pods that may come up with the roll's version: they had it or were asked for it, and are not ready now.

    A pod that joined since comes up with the active version.
    """
    all_updated: bool
    """Every pod that may be answering requests serves the roll's version, and there is such a pod."""
    settled: bool
    """Every pod serves the active version, and none is on its way up with another."""
    returned: bool
    """No pod is swapping, and no ready pod serves anything but the active version."""
    too_many_not_ready: bool
    """More pods than the policy allows are not ready, so the ready ones must not swap."""
    too_many_others_not_ready: bool
    """The same, not counting the pods that had the version or were asked to take it: something else ends pods."""
    weights_differ: bool
    """Pods hold different weights under the roll's version."""
    late_load: str
    """A pod whose engine loads the roll's version for longer than the deadline, or empty."""
    late_return: str
    """A pod that had the version, or was asked to take it, and is missing for longer than allowed; or empty."""
    awaits_return: bool
    """A pod that had the version, or was asked to take it, is missing, and the version may be why."""
    no_progress: bool
    """The roll made no progress for longer than the deadline, and no pod is missing or loads the version."""
    starved: bool
    """The canary, or the baseline before it, waits for traffic that does not come."""
    watch_over: bool
    """The promoted version was watched for ``watchSeconds``."""
    vouched: bool
    """A person vouches for the roll's version."""
    peers: Mapping[str, PodCounters]
    """Counters of the pods that serve the active version, by pod; empty when the roll's version is active."""
    analysis: AnalysisState | None
    """The live analysis, this reconcile's traffic included."""

    @property
    def version(self) -> int:
        """The roll's version. Call only where there is one: in every phase but Idle."""
        assert self.roll.version is not None, "only an idle roll has no version"
        return self.roll.version

    @property
    def analysed_roll(self) -> Roll:
        """The roll with this reconcile's live analysis."""
        return self.roll.model_copy(update={"analysis": self.analysis})


def facts_of(world: World, stored: Roll) -> RolloutFacts:
    """The facts of this reconcile."""
    roll = with_absences(world, _with_crashes_counted(world, restored(world, stored)))
    version, pods = roll.version, world.pods
    updated = confirmed(pods, version)
    live, peers = _live(world, version), _live(world, world.active) if version != world.active else {}
    not_ready = [pod.name for pod in pods if not pod.ready]
    too_many_not_ready = len(not_ready) > world.policy.max_not_ready
    too_many_others = sum(name not in roll.engine_boots for name in not_ready) > world.policy.max_not_ready
    stands_still = too_many_others or bool(roll.missing_since or roll.loading_since)
    vouched = version is not None and world.promote == version
    watched = timedelta.max if roll.progressed is None else world.now - roll.progressed
    watch = timedelta(seconds=world.policy.analysis.watch_seconds)
    return RolloutFacts(
        world=world,
        roll=roll,
        phase=RolloutPhase.IDLE if version is None and roll.phase is not RolloutPhase.ROLLING_BACK else roll.phase,
        deadline=_deadline(world),
        ready=tuple(pod for pod in pods if pod.ready),
        updated=updated,
        third_version_pods=tuple(
            pod.name for pod in pods if pod.ready and pod.version not in (version, world.active) and not pod.swapping
        ),
        uncertain_pods=sum(p.name in roll.engine_boots and not p.ready and (p.up or p.starting) for p in pods),
        all_updated=any(pod.ready for pod in pods) and len(updated) == sum(pod.ready or pod.up for pod in pods),
        settled=_settled(world),
        returned=not any(pod.swapping or (pod.ready and pod.version != world.active) for pod in pods),
        too_many_not_ready=too_many_not_ready,
        too_many_others_not_ready=too_many_others,
        weights_differ=len({pod.checksum for pod in updated}) > 1,
        late_load=late_load(world, roll),
        late_return=late_return(world, roll),
        awaits_return=bool(roll.missing_since),
        no_progress=not stands_still and _no_progress(world, roll, vouched=vouched),
        starved=not too_many_not_ready and not vouched and _starved(world, roll, live, peers),
        watch_over=watched >= watch,
        vouched=vouched,
        peers=peers,
        analysis=_analysis(world, roll, live, peers, vouched=vouched),
    )


def _deadline(world: World) -> timedelta:
    return timedelta(seconds=world.policy.progress_deadline_seconds)


def _with_crashes_counted(world: World, roll: Roll) -> Roll:
    """``roll`` with a count of the engines that crashed alone, while serving the version or swapping to it.

    The engines of other versions that crashed are counted beside them.
    """
    if roll.version is None or roll.phase not in JUDGED_PHASES:
        return roll
    boots = {pod.name: pod.boot for pod in world.pods if pod.ready}
    serving = {pod.name: pod.boot for pod in confirmed(world.pods, roll.version)}
    crashed = {name for name, boot in roll.engine_boots.items() if boots.get(name, boot) != boot}
    kept = {name: boot for name, boot in roll.engine_boots.items() if name not in crashed}
    windows = roll.analysis.windows if roll.analysis else []
    others_crashed = any(boots.get(w.name, w.boot) != w.boot for w in windows if w.name not in roll.engine_boots)
    with_agent = {pod.name for pod in world.pods if pod.started_together}
    alone = set() if world.observation_gap else crashed - with_agent
    blamed = 0 if others_crashed else len(alone)
    starts = {name: at for name, at in roll.container_starts.items() if name not in crashed}
    others = {name: boot for name, boot in boots.items() if boot and name not in kept | serving}
    known = {name: boot for name, boot in roll.other_boots.items() if name not in roll.engine_boots}
    also_crashed = {name for name, boot in known.items() if boots.get(name, boot) != boot} - with_agent
    # A crash beside one of the version has excused it already, and must not excuse another one later.
    others_counted = 0 if world.observation_gap else max(0, len(also_crashed) - len(alone) + blamed)
    update = {
        "engine_boots": kept | serving,
        "container_starts": starts | container_starts(confirmed(world.pods, roll.version)),
        "engine_crashes": roll.engine_crashes + blamed,
        "other_boots": {name: boot for name, boot in known.items() if name not in boots} | others,
        "other_crashes": roll.other_crashes + others_counted,
    }
    return roll.model_copy(update=update)


def _live(world: World, version: int | None) -> dict[str, PodCounters]:
    """Counters of the pods that serve ``version``."""
    if version is None:
        return {}
    return {pod.name: PodCounters(pod.boot, version, pod.counters) for pod in confirmed(world.pods, version)}


def _settled(world: World) -> bool:
    at_rest = (pod.confirms(world.active) or (not pod.ready and not pod.starting) for pod in world.pods)
    return any(pod.ready for pod in world.pods) and all(at_rest)


def _no_progress(world: World, roll: Roll, *, vouched: bool) -> bool:
    if roll.phase is RolloutPhase.PAUSED:
        return False
    state, since = roll.analysis, roll.progressed
    if roll.phase is RolloutPhase.CANARY and state is not None:
        # A canary that a person vouches for takes its pods without a baseline.
        waits_for_baseline = state.baseline is None and not vouched
        if waits_for_baseline or (state.window_begins is not None and state.canary_missing_since is None):
            return False
        since = state.canary_missing_since or since
    return since is not None and world.now - since > _deadline(world)


def _starved(world: World, roll: Roll, live: Mapping[str, PodCounters], peers: Mapping[str, PodCounters]) -> bool:
    state, since = roll.analysis, roll.progressed
    if state is None or since is None or roll.phase is not RolloutPhase.CANARY:
        return False
    if world.policy.paused or world.pin_set or world.now - since <= _deadline(world):
        return False
    sides = [peers] if state.baseline is None else [live, peers] if peers else [live]
    return live_analysis.starved(state, sides, world.policy.analysis, _deadline(world), world.now)


def _analysis(
    world: World, roll: Roll, live: Mapping[str, PodCounters], peers: Mapping[str, PodCounters], *, vouched: bool
) -> AnalysisState | None:
    state, version = roll.analysis, roll.version
    if state is None or version is None or state.baseline is None or roll.phase not in JUDGED_PHASES:
        return state
    if live and state.serving_digest == world.serving_digest and not vouched:
        rules, steps = world.policy.analysis, world.draft_steps
        return live_analysis.judge(state, live, peers, version, rules, steps=steps, now=world.now)
    return live_analysis.with_windows_for(state, {**peers, **live}, version)
