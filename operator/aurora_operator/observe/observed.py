"""What the operator sees of one speculator, as one frozen value: the whole input of planning.

Invariant: everything that planning depends on is here. What could not be read is data too (``StoreView.error``,
``PodView.agent`` is None), so that a fault outside never stops a plan from being made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.owner import Owner
from aurora_protocol.agent_api import AgentState, LiveCounters, MeasurementStatus
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, Lineage, Registration
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.training_records import TrainerStatus


@dataclass(frozen=True)
class UserRequests:
    """What a person asks for by annotation, each for one version, so that an old wish says nothing about a new one."""

    promote: int | None = None
    abort: int | None = None


@dataclass(frozen=True)
class PodView:
    """One inference pod: what Kubernetes says of it, and what its agent says (None: did not answer)."""

    name: str
    uid: str
    ip: str = ""
    ready: bool = False
    terminating: bool = False
    scheduled: bool = False
    agent: AgentState | None = None
    waiting: str = ""
    """Why a container does not run, in Kubernetes' word: ImagePullBackOff, CrashLoopBackOff…"""
    started_together: bool = False
    """Its containers started together: what ended the engine before this one ended the agent too."""

    @property
    def measurement(self) -> MeasurementStatus | None:
        """Set while the pod is withdrawn to measure on it."""
        return self.agent.measurement if self.agent else None


@dataclass(frozen=True)
class WorkloadView:
    """A Deployment or StatefulSet."""

    current: bool
    """The controller has seen our last change and every pod has the current template."""
    replicas: int
    ready: int
    message: str = ""


@dataclass(frozen=True)
class JobView:
    name: str
    version: int
    attempt: int
    succeeded: bool = False
    failed: bool = False
    message: str = ""
    waiting: str = ""
    """Why its pod does not start."""

    @property
    def finished(self) -> bool:
        return self.succeeded or self.failed


@dataclass(frozen=True)
class RefusedJob:
    """A Job that the API server would not take, and why in its words."""

    name: str
    message: str


@dataclass(frozen=True)
class StoreView:
    """The store's small records; ``error`` in plain words when they could not be read, and then nothing else holds."""

    reason: str = "Ready"
    error: str = ""
    lineage: Lineage | None = None
    channel: Channel | None = None
    registrations: Mapping[int, Registration] = field(default_factory=dict)
    """The versions that may matter now: newest, active, previous, candidate, rolled out."""
    evidence: tuple[Evidence, ...] = ()
    trainer: TrainerStatus | None = None

    @property
    def ok(self) -> bool:
        return not self.error

    @property
    def newest(self) -> int | None:
        return max(self.registrations, default=None)

    def proven(self, version: int) -> bool:
        """Whether ``version`` may be pinned: the initial draft, or one that passed, against whatever version."""
        registration = self.registrations.get(version)
        if registration is None or self.channel is None or registration.lineage != self.channel.lineage:
            return False
        return version == INITIAL_VERSION or any(
            e.verdict.kind is VerdictKind.PASS and e.candidate_digest == registration.digest
            for e in self.attempts(version)
        )

    def attempts(self, version: int) -> tuple[Evidence, ...]:
        """Evidence of ``version``, first attempt first."""
        return tuple(sorted((e for e in self.evidence if e.version == version), key=lambda e: e.attempt))

    def earned(self, version: int) -> Evidence | None:
        """The evidence that lets ``version`` follow the version that is active now (promise 1), if there is any."""
        if self.channel is None or version not in self.registrations:
            return None
        registration = self.registrations[version]
        for evidence in reversed(self.attempts(version)):
            if (
                evidence.verdict.kind is VerdictKind.PASS
                and evidence.active_version == self.channel.active
                and evidence.lineage == self.channel.lineage == registration.lineage
                and evidence.candidate_digest == registration.digest
            ):
                return evidence
        return None


@dataclass(frozen=True)
class LiveWindow:
    """Engine counters of one pod at the start of the live window."""

    boot: str
    time: datetime
    live: LiveCounters


@dataclass(frozen=True)
class Observed:
    owner: Owner
    spec: SpeculatorSpec
    status: SpeculatorStatus
    pods: tuple[PodView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    deployment: WorkloadView | None = None
    trainer: WorkloadView | None = None
    store: StoreView = StoreView()
    keys_exist: bool = False
    disruptions_allowed: int | None = None
    """How many more pods the disruption budget lets go now; None while that is not known."""
    window: Mapping[str, LiveWindow] = field(default_factory=dict)
    """By pod name. Only figures for people come from it, never a decision."""
    resumed: bool = False
    """Nobody looked for a while, or the clock was set (see ``observed_time``): deadlines count from now."""
    fenced: bool = False
    """An agent refused our last swap because it has seen a higher epoch."""
    wishes: UserRequests = UserRequests()
    problems: tuple[str, ...] = ()
    """What the API server refused in the last act, in its words."""
    refused_job: RefusedJob | None = None
    """Of the last act; a process that forgets it asks for that Job once more."""
