"""The rollout's state machine: which pod is swapped to which version next. Pure; time is an argument.

::

    Idle --offer--> Canary --judged good--> Rolling --all pods confirmed--> promote, Watching --in peace--> Idle
                     |  ^                      |                               |
             paused  v  | resumed   failure, deadline, judged bad, abort       | judged bad, abort: back to previous
                    Paused                     +--------> RollingBack <--------+
                                                              |
                                                 all pods on active --> Idle

A pin ends whatever goes on and makes its version the active one. Without traffic a judgement waits: the canary holds
until there is some, or until a person promotes or aborts.

Invariants: a pod is only ever asked for the active version or for the one being rolled, and the latter only while
``World.earned`` holds for it (promise 1); a roll starts only from pods that all serve the active version, so at most
two versions serve (promise 3); everything needed to go on after a restart is in :class:`RolloutStatus`, the channel and
the pods themselves.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aurora_api.agent import SwapPhase
from aurora_api.records import ChannelReason
from aurora_api.status import AnalysisStatus, RolloutPhase, RolloutStatus
from aurora_operator.plan import analysis
from aurora_operator.plan.analysis import Outcome
from aurora_operator.plan.world import Advance, Step, World, confirmed, disagree, next_swaps, repairs, settled

UNDER_WAY = frozenset({RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED})


def step(world: World, rollout: RolloutStatus) -> Step:
    """The next step from ``rollout``, whatever happened since it was written."""
    before = rollout
    epoch = max(rollout.epoch, world.epoch) + (1 if world.fenced else 0)
    rollout = rollout.model_copy(update={"epoch": epoch})
    if world.resumed and rollout.phase is not RolloutPhase.IDLE:
        rollout = rollout.model_copy(update={"progressed": world.now})
    out = _dispatch(world, rollout)
    return Step(_count(world, out.rollout, before), out.swaps, out.advance, out.event)


def _dispatch(world: World, rollout: RolloutStatus) -> Step:
    version, phase = rollout.version, rollout.phase
    if phase is RolloutPhase.ROLLING_BACK:
        return _rolling_back(world, rollout)
    if phase is RolloutPhase.IDLE or version is None:
        return _idle(world, rollout)
    if phase is RolloutPhase.WATCHING:
        return _watching(world, rollout, version)
    if version == world.active:
        # Promoted in the channel, and this process, or one before it, died before the status said so.
        return Step(_promoted(world, rollout, version), event="Promoted")
    if world.pin is not None:
        return _roll_back(world, rollout, f"version {world.pin} is pinned")
    if why := _failure(world, rollout, version):
        return _roll_back(world, rollout, why, reject=version)
    if version not in world.earned:
        return _roll_back(world, rollout, f"the evidence for version {version} does not hold against {world.active}")
    if not world.pods:
        return _roll_back(world, rollout, "there are no pods any more")
    return _forward(world, rollout, version)


def _forward(world: World, rollout: RolloutStatus, version: int) -> Step:
    """A roll in which nothing is wrong."""
    if rollout.phase is RolloutPhase.PAUSED and not world.policy.paused:
        return Step(_with(rollout, phase=RolloutPhase.CANARY, progressed=world.now, message="resumed"), event="Resumed")
    if world.policy.paused:
        if rollout.phase is RolloutPhase.PAUSED:
            return Step(rollout)
        return Step(_with(rollout, phase=RolloutPhase.PAUSED, message="paused"), event="Paused")
    if rollout.phase is RolloutPhase.CANARY:
        return _canary(world, rollout, version)
    return _rolling(world, rollout, version)


def _with(rollout: RolloutStatus, **update: Any) -> RolloutStatus:
    return rollout.model_copy(update=update)


def _idle(world: World, rollout: RolloutStatus) -> Step:
    idle = _with(rollout, phase=RolloutPhase.IDLE)
    if world.pin is not None and world.pin != world.active:
        pinned = _with(idle, version=world.pin, message=f"version {world.pin} is pinned", analysis=None)
        return Step(pinned, advance=Advance(world.pin, ChannelReason.PINNED), event="Pinned")
    if world.policy.paused:
        return Step(idle)
    if world.offer is not None and world.pin is None:
        if settled(world):
            return _start(world, rollout, world.offer)
        why = f"version {world.offer} waits until every pod serves version {world.active}"
        idle = _with(idle, message=why)
    return Step(idle, swaps=repairs(world, world.policy.max_swapping))


def _start(world: World, rollout: RolloutStatus, version: int) -> Step:
    rules = world.policy.analysis
    judged = rules.consecutive_success_limit > 0
    started = RolloutStatus(
        phase=RolloutPhase.CANARY,
        epoch=rollout.epoch + 1,
        version=version,
        total=len(world.pods),
        started=world.now,
        progressed=world.now,
        analysis=AnalysisStatus() if judged else None,
        message=f"version {version} comes to {min(world.policy.canary, len(world.pods))} pod(s) first",
    )
    return Step(started, event="RolloutStarted")


def _failure(world: World, rollout: RolloutStatus, version: int) -> str:
    """Why the roll must end, in plain words; empty when nothing is wrong."""
    if world.abort == version:
        return f"version {version} was aborted by a person"
    for pod in world.pods:
        swap = pod.swap
        mine = rollout.started is None or swap.finished is None or swap.finished >= rollout.started
        if swap.phase is SwapPhase.FAILED and swap.version == version and pod.version != version and mine:
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    if disagree(world.pods, version):
        return f"pods that serve version {version} hold different weights"
    # A judgement that waits for traffic is no lack of progress.
    state = rollout.analysis
    judging = rollout.phase is RolloutPhase.CANARY and state is not None and state.since is not None
    deadline = timedelta(seconds=world.policy.progress_deadline_seconds)
    late = rollout.progressed is not None and world.now - rollout.progressed > deadline
    if late and not judging and rollout.phase is not RolloutPhase.PAUSED:
        return f"no progress for {world.policy.progress_deadline_seconds} s"
    return ""


def _canary(world: World, rollout: RolloutStatus, version: int) -> Step:
    state, ready = rollout.analysis, world.ready()
    if strays := [pod.name for pod in ready if pod.version not in (version, world.active) and not pod.swapping]:
        return Step(rollout, swaps=dict.fromkeys(strays, world.active))
    if world.promote == version or world.policy.analysis.consecutive_success_limit == 0:
        state = None
    if state is not None and state.baseline is None:
        state = analysis.measure_baseline(state, world.live(world.active), world.policy.analysis, world.now)
        message = f"seeing what pods do with version {world.active}, before the first takes version {version}"
        return Step(_with(rollout, analysis=state, message=message))
    want = min(world.policy.canary, len(ready))
    if not ready or len(confirmed(ready, version)) < want:
        waiting = _with(rollout, message=f"swapping {want} pod(s) to version {version}")
        if state is not None and state.since is not None:  # the canary was lost: its time and its judgement start anew
            waiting = _with(waiting, progressed=world.now, analysis=AnalysisStatus(baseline=state.baseline))
        return Step(waiting, swaps=next_swaps(world, version, want))
    if state is None:
        return _canary_passed(world, rollout, version, "not judged: a person vouches for it, or the policy asks for it")
    return _judge_canary(world, rollout, version, state)


def _judge_canary(world: World, rollout: RolloutStatus, version: int, state: AnalysisStatus) -> Step:
    rules = world.policy.analysis
    state, outcome = analysis.judge(
        state, world.live(version), world.live(world.active), rules, steps=world.steps, now=world.now
    )
    judged = _with(rollout, analysis=state, message=state.message or f"judging version {version} by live traffic")
    if outcome is Outcome.BAD and state.failures > rules.failure_limit:
        return _roll_back(world, judged, f"live traffic disagrees: {state.message}", reject=version)
    if state.successes >= rules.consecutive_success_limit:
        return _canary_passed(world, judged, version, state.message)
    return Step(judged)


def _canary_passed(world: World, rollout: RolloutStatus, version: int, why: str) -> Step:
    message = f"swapping the other pods to version {version}; the canary: {why}"
    rolling = _with(rollout, phase=RolloutPhase.ROLLING, progressed=world.now, message=message)
    return Step(rolling, swaps=next_swaps(world, version, len(world.ready())), event="CanaryPassed")


def _rolling(world: World, rollout: RolloutStatus, version: int) -> Step:
    ready = world.ready()
    if ready and len(confirmed(ready, version)) == len([pod for pod in world.pods if pod.ready or pod.up]):
        done = _promoted(world, _with(rollout, epoch=rollout.epoch + 1), version)
        return Step(done, advance=Advance(version, ChannelReason.PROMOTED), event="Promoted")
    return Step(rollout, swaps=next_swaps(world, version, len(ready)))


def _promoted(world: World, rollout: RolloutStatus, version: int) -> RolloutStatus:
    """Watch on where there is something to compare with."""
    baseline = rollout.analysis.baseline if rollout.analysis else None
    watch = baseline is not None and world.policy.analysis.watch_seconds > 0
    return _with(
        rollout,
        phase=RolloutPhase.WATCHING if watch else RolloutPhase.IDLE,
        progressed=world.now,
        analysis=AnalysisStatus(baseline=baseline) if watch else None,
        message=f"version {version} is active",
    )


def _watching(world: World, rollout: RolloutStatus, version: int) -> Step:
    """Judge the promoted version on; its message names the last judgement."""
    rules, state = world.policy.analysis, rollout.analysis
    if version != world.active:
        # Taken back in the channel, and the process died before the status said so; or another's hand.
        return _roll_back(world, rollout, rollout.message)
    if world.abort == version and world.previous is not None:
        return _take_back(world, rollout, f"version {version} was aborted by a person")
    over = rollout.progressed is None or world.now - rollout.progressed >= timedelta(seconds=rules.watch_seconds)
    if over or state is None or world.pin is not None or world.promote == version or world.previous is None:
        return Step(_with(rollout, phase=RolloutPhase.IDLE, analysis=None))
    state, outcome = analysis.judge(state, world.live(version), {}, rules, steps=world.steps, now=world.now)
    message = f"version {version} is active" + (f"; since then {state.message}" if state.message else "")
    judged = _with(rollout, analysis=state, message=message)
    if outcome is Outcome.BAD and state.failures > rules.failure_limit:
        return _take_back(world, judged, f"live traffic disagrees: {state.message}")
    return Step(judged, swaps=repairs(world, world.policy.max_swapping))


def _take_back(world: World, rollout: RolloutStatus, why: str) -> Step:
    """Make the previous version active again; the pods follow with the next look, all at once."""
    assert world.previous is not None, "the caller knows where to go"
    back = Advance(world.previous, ChannelReason.ROLLED_BACK, reject=rollout.version)
    return Step(_back(world, rollout, why), advance=back, event="RolloutFailed")


def _roll_back(world: World, rollout: RolloutStatus, why: str, *, reject: int | None = None) -> Step:
    """End a roll that is under way: its version never became active."""
    advance = None if reject is None else Advance(world.active, ChannelReason.ROLLED_BACK, reject=reject)
    return Step(_back(world, rollout, why), advance=advance, event="RolloutFailed")


def _back(world: World, rollout: RolloutStatus, why: str) -> RolloutStatus:
    update = {"phase": RolloutPhase.ROLLING_BACK, "epoch": rollout.epoch + 1, "progressed": world.now}
    return _with(rollout, **update, analysis=None, message=why)


def _rolling_back(world: World, rollout: RolloutStatus) -> Step:
    swaps = repairs(world, len(world.pods))
    if swaps or any(pod.swapping or (pod.ready and pod.version != world.active) for pod in world.pods):
        return Step(rollout, swaps=swaps)
    return Step(_with(rollout, phase=RolloutPhase.IDLE, progressed=world.now), event="RolledBack")


def _count(world: World, rollout: RolloutStatus, before: RolloutStatus) -> RolloutStatus:
    """Refresh ``updated``/``total``; more pods on the version is progress."""
    if rollout.version is None:
        return rollout
    updated = len(confirmed(world.pods, rollout.version))
    progressed = world.now if updated > before.updated and rollout.phase in UNDER_WAY else None
    update = {"updated": updated, "total": len(world.pods)}
    return rollout.model_copy(update=update | ({"progressed": progressed} if progressed else {}))
