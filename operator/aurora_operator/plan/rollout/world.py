"""The rollout's input: pods, channel, policy and the requests of people. Plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aurora_operator.plan.rollout.policy import RolloutPolicy
from aurora_protocol.agent_api import LiveCounters, SwapStatus
from aurora_protocol.draft_records import ChannelReason


@dataclass(frozen=True)
class Pod:
    """A pod as the rollout sees it. ``version`` and ``checksum`` are the engine's own; None when not known."""

    name: str
    ready: bool
    """Kubernetes calls the pod ready, and its agent calls the engine ready."""
    up: bool = False
    """Kubernetes or the agent calls the pod ready, though perhaps not both: it may be answering requests."""
    kubernetes_ready: bool = False
    """Kubernetes calls the pod ready, even if its agent gives no answer."""
    version: int | None = None
    checksum: str | None = None
    swap: SwapStatus = field(default_factory=SwapStatus)
    boot: str = ""
    """Random id of this engine start."""
    started_together: bool = False
    """The engine started together with its agent, so the engine before did not crash alone."""
    crash_loops: bool = False
    """The engine's container ended several times, and Kubernetes delays its next start (``CrashLoopBackOff``)."""
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
    start_limit: timedelta = timedelta(0)
    """How long a pod may take to become ready, by the engine's startup probe."""
    previous: int | None = None
    """The channel's previous version."""
    rejected: frozenset[int] = frozenset()
    """Versions that the channel rejects, because of live traffic, failures or a person."""
    channel_reason: ChannelReason | None = None
    """The reason in the channel's last record."""
    channel_message: str = ""
    """Why the channel's last record was written."""
    serving_digest: str = ""
    """Digest of how pods serve. Acceptance from before and after a change of the digest cannot be compared."""
    draft_steps: int = 3
    """Draft steps per verify round."""
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
    fencing_epoch: int = 0
    """The highest epoch for which a pod refused our last requests; 0: no pod has seen a higher epoch than ours."""


def confirmed(pods: Iterable[Pod], version: int | None) -> tuple[Pod, ...]:
    """The pods that :meth:`Pod.confirms` ``version``."""
    return tuple(pod for pod in pods if pod.confirms(version))
