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
two versions serve (promise 3); time alone never refuses a version, only what was seen of it does; everything needed to
go on after a restart is in :class:`RolloutStatus`, the channel and the pods themselves.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aurora_api.v1alpha1.status import AnalysisStatus, RolloutPhase, RolloutStatus
from aurora_operator.plan.rollout import failures, live_analysis
from aurora_operator.plan.rollout.facts import (
    Advance,
    Step,
    World,
    confirmed,
    expelled,
    hindrance,
    next_swaps,
    repairs,
    settled,
    unsure,
)
from aurora_operator.plan.rollout.restored_status import recalled
from aurora_protocol.draft_records import ChannelReason

WAITS = "waiting"
UNDER_WAY = frozenset({RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED})


def step(world: World, rollout: RolloutStatus) -> Step:
    """The next step from ``rollout``, whatever happened since it was written."""
    known = recalled(world, rollout)
    if known.version is not None and known.phase in UNDER_WAY | {RolloutPhase.WATCHING}:
        known = failures.counted(world, known, known.version)
    out = _dispatch(world, known)
    return Step(_count(world, out.rollout, rollout), out.swaps, out.advance, out.event)


def _dispatch(world: World, rollout: RolloutStatus) -> Step:
    version, phase = rollout.version, rollout.phase
    if world.pin is not None and world.pin != world.active:
        return _pin(world, rollout, world.pin)
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
        return _roll_back(world, rollout, f"version {world.pin} is pinned", event="RolloutStopped")
    if version in world.refused:
        return _roll_back(world, rollout, world.reason)
    if why := failures.failure(world, rollout, version):
        return _roll_back(world, rollout, why, reject=version)
    if why := failures.obstacle(world, rollout, version):
        return _roll_back(world, rollout, why, event="RolloutStopped")
    return _forward(world, rollout, version)


def _with(rollout: RolloutStatus, **update: Any) -> RolloutStatus:
    return rollout.model_copy(update=update)


def _analysed(rollout: RolloutStatus, **update: Any) -> RolloutStatus:
    state = rollout.analysis
    return rollout if state is None else _with(rollout, analysis=state.model_copy(update=update))


def _idled(rollout: RolloutStatus, **update: Any) -> RolloutStatus:
    """At rest: what was seen of the version's pods is settled."""
    return _with(rollout, phase=RolloutPhase.IDLE, analysis=None, asked={}, restarts=0, **update)


def _pin(world: World, rollout: RolloutStatus, pin: int) -> Step:
    """Make the pinned version active; where that would be a third one, bring all pods to the active one first."""
    others = {v for pod in world.pods if pod.ready for v in (pod.version, pod.swap.version if pod.swapping else None)}
    if len(others - {pin, None}) > 1:
        why = f"version {pin} is pinned; all pods go to version {world.active} first"
        back = rollout if rollout.phase is RolloutPhase.ROLLING_BACK else _back(world, rollout, why)
        return Step(back, swaps=repairs(world, len(world.pods)))
    pinned = RolloutStatus(epoch=rollout.epoch + 1, version=pin, message=f"version {pin} is pinned")
    return Step(pinned, advance=Advance(pin, ChannelReason.PINNED), event="Pinned")


def _idle(world: World, rollout: RolloutStatus) -> Step:
    idle = _idled(rollout, **({"message": ""} if rollout.message.startswith(WAITS) else {}))
    if world.abort == world.active and world.previous is not None and not world.hold:
        return _take_back(world, idle, f"version {world.active} was aborted by a person")
    if world.policy.paused and world.pin is None:
        if world.offer is not None:
            idle = _with(idle, message=f"{WAITS} for rolls to be resumed: version {world.offer} passed")
        return Step(idle, swaps=expelled(world))
    if world.offer is not None and not world.hold:
        if settled(world) and not world.short():
            return _start(world, rollout, world.offer)
        why = f"{WAITS} for pods to be ready and serve version {world.active}: version {world.offer} passed"
        idle = _with(idle, message=why)
    return Step(idle, swaps=repairs(world, world.policy.max_swapping))


def _start(world: World, rollout: RolloutStatus, version: int) -> Step:
    rules = world.policy.analysis
    judged = rules.consecutive_success_limit > 0 or rules.watch_seconds > 0
    started = RolloutStatus(
        phase=RolloutPhase.CANARY,
        epoch=rollout.epoch + 1,
        version=version,
        total=len(world.pods),
        started=world.now,
        progressed=world.now,
        analysis=AnalysisStatus(shape=world.shape) if judged else None,
        message=f"version {version} comes to {min(world.policy.canary, len(world.pods))} pod(s) first",
    )
    return Step(started, event="RolloutStarted")


def _forward(world: World, rollout: RolloutStatus, version: int) -> Step:
    """A roll in which nothing is wrong yet."""
    rollout, why = _heard(world, rollout, version)
    if why:
        return _roll_back(world, rollout, why, reject=version)
    if world.policy.paused or world.hold:
        if rollout.phase is RolloutPhase.PAUSED:
            return Step(rollout)
        return Step(_with(rollout, phase=RolloutPhase.PAUSED, message="paused"), event="Paused")
    if rollout.phase is RolloutPhase.PAUSED:
        return Step(_with(rollout, phase=RolloutPhase.CANARY, progressed=world.now, message="resumed"), event="Resumed")
    if world.short():
        held = f"held: more than {world.policy.max_not_ready} pod(s) are not ready"
        return Step(_with(rollout, progressed=None, message=held))
    if rollout.progressed is None:
        rollout = _with(rollout, progressed=world.now)
    if rollout.phase is RolloutPhase.CANARY:
        return _canary(world, rollout, version)
    return _rolling(world, rollout, version)


def _heard(world: World, rollout: RolloutStatus, version: int) -> tuple[RolloutStatus, str]:
    """Live traffic's word on the pods that serve ``version``; and why it must go, if it must."""
    rules, state, vouched = world.policy.analysis, rollout.analysis, world.promote == version
    if state is None or state.baseline is None:
        return rollout, ""
    judged, peers = world.live(version), world.live(world.active) if version != world.active else {}
    if judged and state.shape == world.shape and not vouched:
        state = live_analysis.judge(state, judged, peers, version, rules, steps=world.steps, now=world.now)
    else:
        state = live_analysis.observe(state, {**peers, **judged}, version)
    rollout = _with(rollout, analysis=state)
    if state.failures > rules.failure_limit and not vouched:
        return rollout, f"live traffic disagrees: {state.message}"
    return rollout, ""


def _canary(world: World, rollout: RolloutStatus, version: int) -> Step:
    state, ready = rollout.analysis, world.ready()
    if strays := [pod.name for pod in ready if pod.version not in (version, world.active) and not pod.swapping]:
        return Step(rollout, swaps=dict.fromkeys(strays, world.active))
    vouched = world.promote == version
    if state is not None and state.baseline is None and not vouched:
        rules, alone = world.policy.analysis, len(world.pods) <= world.policy.canary
        longest = timedelta(seconds=world.policy.progress_deadline_seconds) if alone else None
        state = live_analysis.measure_baseline(
            state, world.live(world.active), world.active, rules, steps=world.steps, longest=longest, now=world.now
        )
        message = f"seeing what pods do with version {world.active}, before the first takes version {version}"
        progressed = world.now if state.baseline else rollout.progressed
        return Step(_with(rollout, analysis=state, progressed=progressed, message=message))
    want = min(world.policy.canary, len(world.pods))
    have = len(confirmed(ready, version))
    if not ready or have < min(want, len(ready)):
        missing = state is not None and state.since is not None and state.missing_since is None
        waiting = _analysed(rollout, missing_since=world.now) if missing else rollout
        waiting = _with(waiting, message=f"swapping {want} pod(s) to version {version}{hindrance(world, version)}")
        return _ask(world, waiting, next_swaps(world, version, want - len(unsure(world))))
    if state is not None and state.missing_since is not None:
        rollout = _analysed(rollout, missing_since=None)
    needed = world.policy.analysis.consecutive_success_limit
    if vouched or state is None or state.successes >= needed:
        why = "a person vouches for it" if vouched else state.message if state and state.message else "not judged"
        message = f"swapping the other pods to version {version}; the canary: {why}"
        rolling = _with(rollout, phase=RolloutPhase.ROLLING, progressed=world.now, message=message)
        return _ask(world, rolling, next_swaps(world, version, len(ready)), event="CanaryPassed")
    waits = f"judging version {version}, which takes {world.policy.analysis.min_requests} requests on either side"
    return Step(_with(rollout, message=f"{state.message}; {waits}" if state.message else waits))


def _rolling(world: World, rollout: RolloutStatus, version: int) -> Step:
    ready = world.ready()
    if ready and len(confirmed(ready, version)) == len([pod for pod in world.pods if pod.ready or pod.up]):
        done = _promoted(world, _with(rollout, epoch=rollout.epoch + 1), version)
        return Step(done, advance=Advance(version, ChannelReason.PROMOTED), event="Promoted")
    return _ask(world, rollout, next_swaps(world, version, len(ready)))


def _ask(world: World, rollout: RolloutStatus, swaps: dict[str, int], *, event: str = "") -> Step:
    """Ask pods for the version, and note of which engine start: one that ends before it is seen again counts too."""
    boots = {pod.name: pod.boot for pod in world.pods if pod.name in swaps}
    return Step(_with(rollout, asked=rollout.asked | boots), swaps=swaps, event=event)


def _promoted(world: World, rollout: RolloutStatus, version: int) -> RolloutStatus:
    """Watch on where there is something to compare with; what was seen of the canary still counts against it."""
    state = rollout.analysis
    watch = state is not None and state.baseline is not None and world.policy.analysis.watch_seconds > 0
    vouched = world.promote == version
    words = f"version {version} is active" + ("; a person vouches for it" if vouched else "")
    told: dict[str, Any] = {"progressed": world.now, "message": words}
    if not watch or vouched:
        return _idled(rollout, **told)
    watched = _analysed(rollout, since=None, settling=False, missing_since=None, successes=0, message="")
    return _with(watched, phase=RolloutPhase.WATCHING, **told)


def _watching(world: World, rollout: RolloutStatus, version: int) -> Step:
    """Judge the promoted version on; the message names the last judgement."""
    rules, state = world.policy.analysis, rollout.analysis
    if version != world.active:
        # Taken back in the channel, and the process died before the status said so; or another's hand.
        return _roll_back(world, rollout, world.reason or f"version {world.active} was made active")
    if world.abort == version and world.previous is not None:
        return _take_back(world, rollout, f"version {version} was aborted by a person")
    if world.promote == version:
        return Step(_idled(rollout, message=f"version {version} is active; a person vouches for it"), event="Vouched")
    if world.hold or world.previous is None or state is None or state.shape != world.shape:
        return Step(_idled(rollout))
    if why := failures.fatal_in_watch(world, rollout, version):
        return _take_back(world, rollout, why)
    over = rollout.progressed is None or world.now - rollout.progressed >= timedelta(seconds=rules.watch_seconds)
    if over and not failures.missing(world, rollout):
        return Step(_idled(rollout))
    rollout, why = _heard(world, rollout, version)
    if why:
        return _take_back(world, rollout, why)
    heard = rollout.analysis.message if rollout.analysis else ""
    message = f"version {version} is active" + (f"; since then {heard}" if heard else "")
    swaps = expelled(world) if world.policy.paused else repairs(world, world.policy.max_swapping)
    return Step(_with(rollout, message=message), swaps=swaps)


def _take_back(world: World, rollout: RolloutStatus, why: str) -> Step:
    """Make the previous version active again; the pods follow with the next look, all at once."""
    assert world.previous is not None, "the caller knows where to go"
    back = Advance(world.previous, ChannelReason.ROLLED_BACK, reject=world.active)
    return Step(_with(_back(world, rollout, why), version=world.active), advance=back, event="RolloutFailed")


def _roll_back(
    world: World, rollout: RolloutStatus, why: str, *, reject: int | None = None, event: str = "RolloutFailed"
) -> Step:
    """End a roll that is under way: its version never became active."""
    advance = None if reject is None else Advance(world.active, ChannelReason.REFUSED, reject=reject)
    return Step(_back(world, rollout, why), advance=advance, event=event)


def _back(world: World, rollout: RolloutStatus, why: str) -> RolloutStatus:
    return _with(
        rollout,
        phase=RolloutPhase.ROLLING_BACK,
        epoch=rollout.epoch + 1,
        progressed=world.now,
        analysis=None,
        asked={},
        restarts=0,
        message=why,
    )


def _rolling_back(world: World, rollout: RolloutStatus) -> Step:
    swaps = repairs(world, len(world.pods))
    if swaps or any(pod.swapping or (pod.ready and pod.version != world.active) for pod in world.pods):
        return Step(rollout, swaps=swaps)
    return Step(_idled(rollout, progressed=world.now), event="RolledBack")


def _count(world: World, rollout: RolloutStatus, before: RolloutStatus) -> RolloutStatus:
    """Refresh ``updated``/``total``; more pods on the version is progress."""
    if rollout.version is None:
        return rollout
    updated = len(confirmed(world.pods, rollout.version))
    more = updated > before.updated and rollout.phase in UNDER_WAY and rollout.progressed is not None
    progressed = world.now if more else None
    update = {"updated": updated, "total": len(world.pods)}
    return rollout.model_copy(update=update | ({"progressed": progressed} if progressed else {}))
