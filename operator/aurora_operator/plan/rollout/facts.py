"""What the rollout looks at and what it decides: values, and the questions about pods that every phase asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aurora_api.v1alpha1.rollout import RolloutSpec
from aurora_api.v1alpha1.status import RolloutStatus
from aurora_operator.plan.rollout.live_analysis import Live
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason

RETRY_AFTER = timedelta(seconds=5)
"""A failed swap that may be asked for again is, after this time."""


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
    boot: str = ""
    started_together: bool = False
    """The engine started together with its agent, and so not because a draft ended the one before."""
    counters: LiveCounters = field(default_factory=LiveCounters)

    @property
    def swapping(self) -> bool:
        return self.swap.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)


@dataclass(frozen=True)
class World:
    """Everything the state machine looks at. ``active``, ``previous`` and ``epoch`` are the channel's."""

    now: datetime
    active: int
    epoch: int
    pods: tuple[Pod, ...]
    policy: RolloutSpec
    previous: int | None = None
    refused: frozenset[int] = frozenset()
    """The channel's: versions that live traffic or a person refused."""
    reason: str = ""
    """The channel's: why its last record was written."""
    shape: str = ""
    """Digest of how pods serve: acceptance before and after a change of it cannot be compared."""
    steps: int = 3
    """Draft steps per verify round."""
    offer: int | None = None
    """A version that may be rolled out now: earned against ``active``, not rejected."""
    newer: int | None = None
    """A version registered after the one being rolled out, and not refused."""
    earned: frozenset[int] = frozenset()
    pin: int | None = None
    """Serve this version and no other: it is the initial one or passed once."""
    hold: bool = False
    """Nothing new is to be rolled out: a person asked for a version, even if it cannot be had."""
    promote: int | None = None
    """A person vouches for this version: judge it no longer."""
    abort: int | None = None
    """A person refuses this version."""
    resumed: bool = False
    fenced: bool = False

    def ready(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.ready]

    def live(self, version: int) -> Mapping[str, Live]:
        """Counters of the pods that serve ``version``."""
        return {pod.name: Live(pod.boot, version, pod.counters) for pod in confirmed(self.pods, version)}

    def short(self) -> bool:
        """More pods than the policy allows are not ready: those that serve must not be touched."""
        return sum(not pod.ready for pod in self.pods) > self.policy.max_not_ready


@dataclass(frozen=True)
class Advance:
    """The channel's next record."""

    active: int
    reason: ChannelReason
    reject: int | None = None
    """Never offer this version again."""


@dataclass(frozen=True)
class Step:
    """What to do, in this order: ``advance`` the channel, persist ``rollout``, then ``swaps``.

    The channel comes first, because a roll whose version is active already is known to be over; a swap comes last,
    because a process that dies before it must find the decision behind it.
    """

    rollout: RolloutStatus
    swaps: dict[str, int] = field(default_factory=dict)
    """Pod -> version."""
    advance: Advance | None = None
    """``rollout.message`` says why."""
    event: str = ""
    """RolloutStarted, CanaryPassed, Promoted, RolledBack, RolloutFailed, RolloutStopped, Pinned, Paused, Resumed,
    Vouched."""


def confirmed(pods: Iterable[Pod], version: int) -> list[Pod]:
    """Ready pods whose engine says that it serves ``version``, with a checksum to show for it."""
    return [pod for pod in pods if pod.ready and pod.version == version and pod.checksum and not pod.swapping]


def disagree(pods: Iterable[Pod], version: int) -> bool:
    """Whether pods hold different weights under one number."""
    return len({pod.checksum for pod in confirmed(pods, version)}) > 1


def settled(world: World) -> bool:
    """Every pod serves the active version, and none is on its way up with another."""
    return bool(world.ready()) and all(
        (pod.ready and pod.version == world.active and bool(pod.checksum) and not pod.swapping)
        or (not pod.ready and not pod.starting)
        for pod in world.pods
    )


def _recent_failure(pod: Pod, version: int, now: datetime) -> bool:
    swap = pod.swap
    if swap.phase is not SwapPhase.FAILED or swap.version != version or swap.finished is None:
        return False
    return abs(now - swap.finished) < RETRY_AFTER


def hindrance(world: World, version: int) -> str:
    """What keeps a pod from taking ``version`` just now, though nothing is wrong with it; empty, or "; because…"."""
    for pod in world.pods:
        if pod.swap.phase is SwapPhase.FAILED and pod.swap.version == version != pod.version and pod.swap.transient:
            return f"; {pod.name} tries again: {pod.swap.error or 'no reason given'}"
    return ""


def repairs(world: World, limit: int) -> dict[str, int]:
    """Swaps that bring stray pods to the active version, at most ``limit`` at a time."""
    return _back(world, [pod for pod in world.pods if pod.version != world.active], limit)


def expelled(world: World) -> dict[str, int]:
    """Swaps of pods that came back with a refused version, which nobody's pause lets serve on."""
    return _back(world, [pod for pod in world.pods if pod.version in world.refused - {world.active}], len(world.pods))


def _back(world: World, stray: Iterable[Pod], limit: int) -> dict[str, int]:
    ask = [p for p in stray if p.ready and not p.swapping and not _recent_failure(p, world.active, world.now)]
    room = limit - sum(pod.swapping for pod in world.pods)
    return dict.fromkeys(sorted(pod.name for pod in ask)[: max(room, 0)], world.active)


def unsure(world: World) -> list[Pod]:
    """Pods of which it is not known what they serve, or will in a moment."""
    return [pod for pod in world.pods if not pod.ready and (pod.up or pod.starting)]


def next_swaps(world: World, version: int, want: int) -> dict[str, int]:
    """Ask further pods for ``version`` until ``want`` have it or are on the way; pods on a third version come first."""
    if world.short():
        return {}
    having = [pod for pod in world.pods if pod.version == version or (pod.swapping and pod.swap.version == version)]
    others = [
        pod
        for pod in world.pods
        if pod.ready and pod.version != version and not pod.swapping and not _recent_failure(pod, version, world.now)
    ]
    room = min(world.policy.max_swapping - sum(pod.swapping for pod in world.pods), want - len(having))
    others.sort(key=lambda pod: (pod.version == world.active, pod.name))
    return dict.fromkeys([pod.name for pod in others][: max(room, 0)], version)
