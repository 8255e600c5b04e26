"""The rollout's state machine: which pod is swapped to which version next. Pure; time is an argument.

::

    Idle --offer--> Canary --confirmed for canarySeconds--> Rolling --all pods confirmed--> promote, Idle
                      |  ^                                     |
              paused  v  | resumed          failure or deadline v
                    Paused                              RollingBack --all pods on active--> Idle

Invariants: a pod is only ever asked for the active version or for the one being rolled, and the latter only while
``World.earned`` holds for it (promise 1); a roll starts only from pods that all serve the active version, so at most
two versions serve (promise 3); everything needed to go on after a restart is in :class:`RolloutStatus`, the channel and
the pods themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aurora_api.agent import SwapPhase, SwapStatus
from aurora_api.speculator import Rollout
from aurora_api.status import RolloutPhase, RolloutStatus

RETRY_AFTER = timedelta(seconds=5)
"""A failed swap back to the active version is asked for again after this time."""


@dataclass(frozen=True)
class Pod:
    """A pod as the rollout sees it. ``version`` and ``checksum`` are the engine's own; None when not known."""

    name: str
    ready: bool
    """Kubernetes calls it ready and its agent answers that the engine is."""
    starting: bool = False
    """Scheduled and not ready: it may come up with a version that it chose a while ago."""
    up: bool = False
    """Kubernetes or its agent calls it ready, though perhaps not both: it may be answering requests."""
    version: int | None = None
    checksum: str | None = None
    swap: SwapStatus = field(default_factory=SwapStatus)

    @property
    def swapping(self) -> bool:
        return self.swap.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)


@dataclass(frozen=True)
class World:
    """Everything the state machine looks at. ``active`` and ``epoch`` are the channel's."""

    now: datetime
    active: int
    epoch: int
    pods: tuple[Pod, ...]
    policy: Rollout
    offer: int | None = None
    """A version that may be rolled out now: earned against ``active``, not rejected."""
    earned: frozenset[int] = frozenset()
    resumed: bool = False
    fenced: bool = False


@dataclass(frozen=True)
class Step:
    """What to do, in this order: ``promote`` in the channel, persist ``rollout``, then ``swaps``.

    The channel comes first, because a roll whose version is active already is known to be over; a swap comes last,
    because a process that dies before it must find the decision behind it.
    """

    rollout: RolloutStatus
    swaps: dict[str, int] = field(default_factory=dict)
    """Pod -> version."""
    promote: int | None = None
    reject: int | None = None
    """Never offer this version again; ``rollout.message`` says why."""
    event: str = ""
    """RolloutStarted, CanaryPassed, Promoted, RolledBack, RolloutFailed, Paused, Resumed; empty: nothing to tell."""


def confirmed(pods: Iterable[Pod], version: int) -> list[Pod]:
    """Ready pods whose engine says that it serves ``version``, with a checksum to show for it."""
    return [pod for pod in pods if pod.ready and pod.version == version and pod.checksum and not pod.swapping]


def _disagree(pods: Iterable[Pod], version: int) -> bool:
    return len({pod.checksum for pod in confirmed(pods, version)}) > 1


def _recent_failure(pod: Pod, version: int, now: datetime) -> bool:
    swap = pod.swap
    if swap.phase is not SwapPhase.FAILED or swap.version != version or swap.finished is None:
        return False
    return now - swap.finished < RETRY_AFTER


def _repairs(world: World, limit: int) -> dict[str, int]:
    """Swaps that bring stray pods to the active version, at most ``limit`` at a time."""
    stray = [pod for pod in world.pods if pod.ready and pod.version != world.active and not pod.swapping]
    room = limit - sum(pod.swapping for pod in world.pods)
    ask = [pod.name for pod in stray if not _recent_failure(pod, world.active, world.now)]
    return dict.fromkeys(sorted(ask)[: max(room, 0)], world.active)


def _settled(world: World) -> bool:
    """Every pod serves the active version, and none is on its way up with another."""
    return bool(world.pods) and all(
        (pod.ready and pod.version == world.active and bool(pod.checksum) and not pod.swapping)
        or (not pod.ready and not pod.starting)
        for pod in world.pods
    ) and any(pod.ready for pod in world.pods)  # fmt: skip


def _failure(world: World, rollout: RolloutStatus, version: int) -> str:
    """Why the roll must end, in plain words; empty when nothing is wrong."""
    for pod in world.pods:
        swap = pod.swap
        mine = rollout.started is None or swap.finished is None or swap.finished >= rollout.started
        if swap.phase is SwapPhase.FAILED and swap.version == version and pod.version != version and mine:
            return f"pod {pod.name} could not take version {version}: {swap.error or 'no reason given'}"
    if _disagree(world.pods, version):
        return f"pods that serve version {version} hold different weights"
    watching = rollout.phase is RolloutPhase.PAUSED or rollout.canary_since is not None
    deadline = timedelta(seconds=world.policy.progress_deadline_seconds)
    if not watching and rollout.progressed is not None and world.now - rollout.progressed > deadline:
        return f"no progress for {world.policy.progress_deadline_seconds} s"
    return ""


def _roll_back(world: World, rollout: RolloutStatus, why: str, *, reject: bool) -> Step:
    back = rollout.model_copy(
        update={
            "phase": RolloutPhase.ROLLING_BACK,
            "epoch": rollout.epoch + 1,
            "progressed": world.now,
            "canary_since": None,
            "message": why,
        }
    )
    return Step(back, reject=rollout.version if reject else None, event="RolloutFailed")


def _start(world: World, rollout: RolloutStatus, version: int) -> Step:
    started = RolloutStatus(
        phase=RolloutPhase.CANARY,
        epoch=rollout.epoch + 1,
        version=version,
        total=len(world.pods),
        started=world.now,
        progressed=world.now,
        message=f"swapping {min(world.policy.canary, len(world.pods))} pod(s) to version {version} first",
    )
    return Step(started, event="RolloutStarted")


def _next_swaps(world: World, version: int, want: int) -> dict[str, int]:
    """Ask further pods for ``version`` until ``want`` have it or are on the way; pods on a third version come first."""
    having = [pod for pod in world.pods if pod.version == version or (pod.swapping and pod.swap.version == version)]
    others = [pod for pod in world.pods if pod.ready and pod.version != version and not pod.swapping]
    room = min(world.policy.max_swapping - sum(pod.swapping for pod in world.pods), want - len(having))
    others.sort(key=lambda pod: (pod.version == world.active, pod.name))
    return dict.fromkeys([pod.name for pod in others][: max(room, 0)], version)


def _canary(world: World, rollout: RolloutStatus, version: int) -> Step:
    ready = [pod for pod in world.pods if pod.ready]
    want = min(world.policy.canary, len(ready))
    good = confirmed(ready, version)
    if strays := [pod.name for pod in ready if pod.version not in (version, world.active) and not pod.swapping]:
        return Step(rollout, swaps=dict.fromkeys(strays, world.active))
    if not ready or len(good) < want:
        waiting = rollout.model_copy(update={"canary_since": None})
        if rollout.canary_since is not None:
            waiting = waiting.model_copy(update={"progressed": world.now, "message": "the canary is not ready"})
        return Step(waiting, swaps=_next_swaps(world, version, want))
    since = rollout.canary_since or world.now
    if world.now - since < timedelta(seconds=world.policy.canary_seconds):
        message = f"watching {len(good)} pod(s) on version {version} for {world.policy.canary_seconds} s"
        return Step(rollout.model_copy(update={"canary_since": since, "message": message}))
    rolling = rollout.model_copy(
        update={
            "phase": RolloutPhase.ROLLING,
            "canary_since": None,
            "progressed": world.now,
            "message": f"swapping the other pods to version {version}",
        }
    )
    return Step(rolling, swaps=_next_swaps(world, version, len(ready)), event="CanaryPassed")


def _rolling(world: World, rollout: RolloutStatus, version: int) -> Step:
    ready = [pod for pod in world.pods if pod.ready]
    if ready and len(confirmed(ready, version)) == len([pod for pod in world.pods if pod.ready or pod.up]):
        done = rollout.model_copy(
            update={
                "phase": RolloutPhase.IDLE,
                "epoch": rollout.epoch + 1,
                "progressed": world.now,
                "canary_since": None,
                "message": f"version {version} is active",
            }
        )
        return Step(done, promote=version, event="Promoted")
    return Step(rollout, swaps=_next_swaps(world, version, len(ready)))


def _rolling_back(world: World, rollout: RolloutStatus) -> Step:
    swaps = _repairs(world, len(world.pods))
    if swaps or any(pod.swapping or (pod.ready and pod.version != world.active) for pod in world.pods):
        return Step(rollout, swaps=swaps)
    idle = rollout.model_copy(update={"phase": RolloutPhase.IDLE, "progressed": world.now})
    return Step(idle, event="RolledBack")


def _count(world: World, rollout: RolloutStatus, before: RolloutStatus) -> RolloutStatus:
    """Refresh ``updated``/``total``; more pods on the version is progress."""
    if rollout.version is None:
        return rollout
    updated = len(confirmed(world.pods, rollout.version))
    progressed = world.now if updated > before.updated and rollout.phase is not RolloutPhase.IDLE else None
    update = {"updated": updated, "total": len(world.pods)}
    return rollout.model_copy(update=update | ({"progressed": progressed} if progressed else {}))


def step(world: World, rollout: RolloutStatus) -> Step:
    """The next step from ``rollout``, whatever happened since it was written."""
    before = rollout
    epoch = max(rollout.epoch, world.epoch) + (1 if world.fenced else 0)
    rollout = rollout.model_copy(update={"epoch": epoch})
    if world.resumed and rollout.phase is not RolloutPhase.IDLE:
        rollout = rollout.model_copy(update={"progressed": world.now})
    out = _dispatch(world, rollout)
    return Step(_count(world, out.rollout, before), out.swaps, out.promote, out.reject, out.event)


def _dispatch(world: World, rollout: RolloutStatus) -> Step:
    version, phase, paused = rollout.version, rollout.phase, world.policy.paused
    if phase is RolloutPhase.ROLLING_BACK:
        return _rolling_back(world, rollout)
    if phase is RolloutPhase.IDLE or version is None:
        idle = rollout.model_copy(update={"phase": RolloutPhase.IDLE})
        if paused:
            return Step(idle)
        if world.offer is not None:
            if _settled(world):
                return _start(world, rollout, world.offer)
            why = f"version {world.offer} waits until every pod serves version {world.active}"
            idle = idle.model_copy(update={"message": why})
        return Step(idle, swaps=_repairs(world, world.policy.max_swapping))
    if version == world.active:
        # Promoted in the channel, and this process, or one before it, died before the status said so.
        message = f"version {version} is active"
        return Step(
            rollout.model_copy(update={"phase": RolloutPhase.IDLE, "canary_since": None, "message": message}),
            event="Promoted",
        )
    if why := _failure(world, rollout, version):
        return _roll_back(world, rollout, why, reject=True)
    if version not in world.earned:
        why = f"the evidence for version {version} does not hold against version {world.active}"
        return _roll_back(world, rollout, why, reject=False)
    if not world.pods:
        return _roll_back(world, rollout, "there are no pods any more", reject=False)
    if phase is RolloutPhase.PAUSED and not paused:
        resumed = rollout.model_copy(
            update={"phase": RolloutPhase.CANARY, "progressed": world.now, "message": "resumed"}
        )
        return Step(resumed, event="Resumed")
    if paused:
        if phase is RolloutPhase.PAUSED:
            return Step(rollout)
        return Step(rollout.model_copy(update={"phase": RolloutPhase.PAUSED, "message": "paused"}), event="Paused")
    return _canary(world, rollout, version) if phase is RolloutPhase.CANARY else _rolling(world, rollout, version)
