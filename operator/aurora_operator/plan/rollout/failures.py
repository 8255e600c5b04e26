"""Why a roll that is under way must end: because of its version, or without blame for it. Pure.

Invariants: time alone never refuses a version; engines that ended with it and a pod that took it and did not come back
do, whether live traffic is judged or not, because such a version is offered again otherwise, and ends engines for ever;
an agent that is not heard while its pod is up, or a store that does not hand the draft out, says nothing of it;
engines that ended while nobody looked, or together with their agents or engines of another version, say more of the
machine than of it; a version that nobody can judge keeps a newer one waiting for a while, and not for ever.
"""

from __future__ import annotations

from datetime import timedelta

from aurora_api.v1alpha1.status import RolloutPhase, RolloutStatus
from aurora_operator.plan.rollout.facts import World, confirmed, disagree
from aurora_operator.plan.rollout.live_analysis import starved
from aurora_protocol.agent_api import SwapPhase


def counted(world: World, rollout: RolloutStatus, version: int) -> RolloutStatus:
    """``rollout`` with a count of the engines that ended with ``version``, or on the way to it, and alone."""
    boots = {pod.name: pod.boot for pod in world.pods if pod.ready}
    serving = {pod.name: pod.boot for pod in confirmed(world.pods, version)}
    ended = {name for name, boot in rollout.asked.items() if boots.get(name, boot) != boot}
    asked = {name: boot for name, boot in rollout.asked.items() if name not in ended} | serving
    windows = rollout.analysis.pods if rollout.analysis else []
    together = any(boots.get(w.name, w.boot) != w.boot for w in windows if w.name not in rollout.asked)
    anew = {pod.name for pod in world.pods if pod.started_together}
    blamed = 0 if world.resumed or together else len(ended - anew)
    return rollout.model_copy(update={"asked": asked, "restarts": rollout.restarts + blamed})


def fatal(world: World, rollout: RolloutStatus, version: int) -> str:
    """More engines ended with the version than are tolerated: why it must go; else empty."""
    many = rollout.restarts > world.policy.analysis.failure_limit
    return f"{rollout.restarts} engines ended while they served version {version}" if many else ""


def failure(world: World, rollout: RolloutStatus, version: int) -> str:
    """Why the version must go for good, in plain words; empty when nothing is wrong with it."""
    if world.abort == version:
        return f"version {version} was aborted by a person"
    for pod in world.pods:
        swap = pod.swap
        mine = rollout.started is None or swap.finished is None or swap.finished >= rollout.started
        refused = swap.phase is SwapPhase.FAILED and not swap.transient and swap.version == version
        if refused and pod.version != version and mine:
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    if disagree(world.pods, version):
        return f"pods that serve version {version} hold different weights"
    if why := fatal(world, rollout, version):
        return why
    loading = (p.name for p in world.pods if p.swap.phase is SwapPhase.SWAPPING and p.swap.version == version)
    away = next(loading, "") or missing(world, rollout)
    return _stayed_away(world, away, version) if away and _late(world, rollout) else ""


def missing(world: World, rollout: RolloutStatus) -> str:
    """A pod that took the version and is not up now; empty when there is none. One that is up and not heard is no sign
    against the version."""
    return next((p.name for p in world.pods if p.name in rollout.asked and not p.ready and not p.up), "")


def fatal_in_watch(world: World, rollout: RolloutStatus, version: int) -> str:
    """Why a promoted version must go because of engines that end or stay away with it; empty when none do."""
    if why := fatal(world, rollout, version):
        return why
    watched = timedelta(seconds=world.policy.analysis.watch_seconds)
    long = rollout.progressed is not None and world.now - rollout.progressed > watched + _deadline(world)
    pod = missing(world, rollout)
    return _stayed_away(world, pod, version) if pod and long and not world.short() else ""


def _stayed_away(world: World, pod: str, version: int) -> str:
    return f"pod {pod} did not come back with version {version} for {_deadline(world)}"


def _deadline(world: World) -> timedelta:
    return timedelta(seconds=world.policy.progress_deadline_seconds)


def obstacle(world: World, rollout: RolloutStatus, version: int) -> str:
    """Why the roll must end without blame for the version."""
    if version not in world.earned:
        return f"the evidence for version {version} does not hold against version {world.active}"
    if not world.pods:
        return "there are no pods any more"
    if _late(world, rollout):
        return f"no progress for {_deadline(world)}"
    state = rollout.analysis
    if state is not None and state.shape != world.shape and rollout.phase is not RolloutPhase.ROLLING:
        return "how pods serve was changed"
    if world.newer is not None and _starved(world, rollout, version):
        return f"the traffic does not decide about version {version}, and version {world.newer} is newer"
    return ""


def _starved(world: World, rollout: RolloutStatus, version: int) -> bool:
    """Whether a canary, or the baseline before it, waits for traffic that does not come."""
    state, since = rollout.analysis, rollout.progressed
    if state is None or since is None or rollout.phase is not RolloutPhase.CANARY or world.short():
        return False
    wanted = world.promote == version or world.policy.paused or world.hold
    if wanted or world.now - since <= _deadline(world):
        return False
    judged, peers = world.live(version), world.live(world.active)
    sides = [peers] if state.baseline is None else [judged, peers] if peers else [judged]
    return starved(state, sides, world.policy.analysis, _deadline(world), world.now)


def _late(world: World, rollout: RolloutStatus) -> bool:
    """No progress for too long. The clock stands while traffic, a person or pods that are not ready are waited for."""
    state = rollout.analysis
    if rollout.phase is RolloutPhase.PAUSED or world.short():
        return False
    since = rollout.progressed
    if rollout.phase is RolloutPhase.CANARY and state is not None:
        vouched = world.promote == rollout.version  # takes its pods without a baseline
        if (state.baseline is None and not vouched) or (state.since is not None and state.missing_since is None):
            return False
        since = state.missing_since or since
    return since is not None and world.now - since > _deadline(world)
