"""The rollout's input: pods, channel, rules and the requests of people. Plain values.

The rules are what ``spec.rollout`` says, and constants that nobody has had a reason to change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from pydantic import Field

from aurora_api.v1alpha1.rollout import AnalysisSpec, RolloutSpec
from aurora_protocol.agent_api import LiveCounters, SwapStatus
from aurora_protocol.draft_records import ChannelReason

INTERVAL_SECONDS = 10.0
INTERVALS_IN_A_WATCH = 6
"""A watch shorter than a minute has shorter intervals, so that it still holds as many."""


class AnalysisPolicy(AnalysisSpec):
    """How live traffic judges a draft. A loss counts only beyond chance."""

    settle_seconds: float = 2 * INTERVAL_SECONDS
    """Time after the first swap and after the promotion in which nothing is judged, so that requests which the former
    draft began can end."""
    interval_seconds: float = INTERVAL_SECONDS
    """Least time between two judgements."""
    max_accept_loss: float = 0.1
    """Share of the tokens per verify round that pods on the new draft may lose."""
    consecutive_success_limit: int = 2
    """Good judgements in a row that the canary needs before the other pods follow. 0 waits for none."""


class RolloutPolicy(RolloutSpec):
    """How a validated draft reaches the pods."""

    analysis: AnalysisPolicy = Field(default_factory=AnalysisPolicy)
    max_swapping: int = 1
    """Pods that swap at the same time after the canary."""
    max_not_ready: int = 1
    """A roll is held while more pods than this are not ready. A lent replica and a pod without a node do not count."""
    progress_deadline_seconds: int = 600
    """A roll ends without blame when no pod changed its version for this long."""

    @classmethod
    def of(cls, spec: RolloutSpec) -> Self:
        """The rules that a resource asks for."""
        given = spec.analysis
        if given.min_requests == 0:
            analysis = AnalysisPolicy(failure_limit=given.failure_limit, watch_seconds=0, consecutive_success_limit=0)
        else:
            interval = INTERVAL_SECONDS
            if given.watch_seconds:
                interval = min(interval, max(1.0, given.watch_seconds / INTERVALS_IN_A_WATCH))
            analysis = AnalysisPolicy(**dict(given), interval_seconds=interval, settle_seconds=2 * interval)
        return cls(paused=spec.paused, pin=spec.pin, canary=spec.canary, analysis=analysis)


@dataclass(frozen=True)
class Pod:
    """A pod as the rollout sees it. ``version`` and ``checksum`` are the engine's own; None when not known.

    A ready pod without a version serves without a draft.
    """

    name: str
    ready: bool
    """Kubernetes calls the pod ready, and its agent calls the engine ready."""
    kubernetes_ready: bool = False
    """Kubernetes calls the pod ready, even if its agent gives no answer: it may be answering requests."""
    version: int | None = None
    checksum: str | None = None
    swap: SwapStatus = field(default_factory=SwapStatus)
    boot: str = ""
    """Random id of this engine start."""
    lone_restarts: int | None = None
    """How much more often the engine was restarted than its agent; None: unknown for now."""
    counters: LiveCounters = field(default_factory=LiveCounters)

    @property
    def swapping(self) -> bool:
        return self.swap.under_way

    def confirms(self, version: int | None) -> bool:
        """Whether the pod is ready and its engine says that it serves ``version``, with a checksum to show for it."""
        return self.ready and self.version == version and bool(self.checksum) and not self.swapping


@dataclass(frozen=True)
class World:
    """Everything that the state machine depends on, besides the roll itself."""

    now: datetime
    active: int
    """The channel's active version."""
    epoch: int
    """The channel's epoch."""
    pods: tuple[Pod, ...]
    """The pods that serve or start. Left out are lent ones, and those that wait for a node."""
    policy: RolloutPolicy
    previous: int | None = None
    """The channel's previous version."""
    rejected: frozenset[int] = frozenset()
    """Versions that the channel rejects, because of live traffic, failures or a person."""
    channel_reason: ChannelReason | None = None
    """The reason in the channel's last record."""
    channel_message: str = ""
    """Why the channel's last record was written."""
    serving_digest: str = ""
    """Digest of what the user chose for the pods. Acceptance from before and after a change cannot be compared."""
    next_version: int | None = None
    """The version to roll out next: it passed the gate against ``active`` and is not rejected."""
    paused: str = ""
    """Why no further pod gets a version; empty when rolls go on. A pin pauses rolls too (``pin_set``)."""
    newest_version: int = 0
    """The newest registered version that is not rejected."""
    promotable: frozenset[int] = frozenset()
    """Versions with evidence that allows them to replace ``active``."""
    pinned_version: int | None = None
    """The pinned version, if it may be served: the initial draft, or a version that passed the gate once."""
    pin_set: bool = False
    """A person pinned a version, perhaps one that may not be served. Either way nothing new is rolled out."""
    abort: int | None = None
    """A person rejects this version."""
    observation_gap: bool = False
    """The operator did not observe for a while, or the clock was set: deadlines restart now."""
    refused_by_epoch: int = 0
    """The highest epoch for which a pod refused our last requests; 0: no pod has seen a higher epoch than ours."""


def confirmed(pods: Iterable[Pod], version: int | None) -> tuple[Pod, ...]:
    """The pods that :meth:`Pod.confirms` ``version``."""
    return tuple(pod for pod in pods if pod.confirms(version))
