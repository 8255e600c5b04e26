"""Everything that the operator observes about one speculator, as one frozen value: the whole input of planning.

Invariant: planning depends on nothing outside this value. A part that could not be read is data too
(``StoreView.error`` is set, ``PodView.agent`` is None), so an outage never prevents planning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.metadata import Owner
from aurora_operator.kubernetes_api import Object
from aurora_protocol.agent_api import AgentState, MeasurementStatus
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, Lineage, Registration
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.training_records import TrainerStatus


@dataclass(frozen=True)
class PodView:
    """One inference pod: its state in Kubernetes, and its agent's answer (None: the agent did not answer)."""

    name: str
    ip: str = ""
    ready: bool = False
    terminating: bool = False
    scheduled: bool = False
    agent: AgentState | None = None
    waiting: str = ""
    """Kubernetes' reason why a container does not run: ``ImagePullBackOff``, ``CrashLoopBackOff``."""
    failing: str = ""
    """Name of the container that cannot start, or that ends again and again; empty when none is known to."""
    crash: str = ""
    """How that container ended last, such as ``sglang ended with exit code 137, OOMKilled``."""
    scheduler_message: str = ""
    """Why the scheduler finds no node for the pod; empty once the pod has a node."""
    lone_restarts: int | None = None
    """How much more often Kubernetes restarted the engine than its agent. It grows when the engine ends alone, and not
    when the whole pod restarts. None: unknown for now."""
    created: datetime | None = None
    restarts: int = 0
    """How often Kubernetes restarted a container of the pod: the most of all its containers."""

    @property
    def trouble(self) -> str:
        """Why a container does not run and, after a crash, how it ended. Empty when nothing is known to be wrong."""
        return ": ".join(filter(None, (self.waiting, self.crash)))

    @property
    def waits_for_node(self) -> bool:
        """Nothing of the pod runs yet: the cluster has no room for it, or the scheduler has not seen it."""
        return not (self.scheduled or self.ready or self.terminating)

    @property
    def measurement(self) -> MeasurementStatus | None:
        """The measurement that the pod is withdrawn for, if any."""
        return self.agent.measurement if self.agent else None

    @property
    def serves(self) -> bool:
        """Whether the pod serves clients."""
        return self.ready and not self.terminating and self.measurement is None


@dataclass(frozen=True)
class WorkloadView:
    """A Deployment."""

    current: bool
    """The controller has seen our last change, and every pod that exists has the current template."""
    replicas: int
    ready: int
    message: str = ""
    """Why pods cannot be created or do not run; empty when nothing is known to be wrong."""
    restarts: int = 0
    """How often Kubernetes restarted the trainer's container, in its present pod."""
    created: datetime | None = None
    """When the trainer's present pod was created."""


@dataclass(frozen=True)
class DeployedTemplate:
    """The template of the inference Deployment, and the state of its pods."""

    template: Object
    """As the API server stores it, with defaults."""
    whole: bool
    """The controller has seen the template, and every wanted pod has it and is ready."""
    failure: str = ""
    """Why the pods of the template do not become ready, once the progress deadline is over."""
    progressed: datetime | None = None
    """When the Deployment's controller last saw pods of the template appear or become ready."""
    choice_digest: str = ""
    """Digest of what the user chose when the operator applied the template. Empty: the Deployment keeps none."""
    template_digest: str = ""
    """Digest of the template that the operator made of it. While an upgrade waits, that of the former operator."""
    restarting_since: datetime | None = None
    """Since when the pods restart because of an upgrade of the operator."""
    in_place: bool = False
    """Pods are replaced without one more (``maxSurge`` is 0)."""


@dataclass(frozen=True)
class FleetView:
    """What the other speculators do: restarts because of an upgrade of the operator, and measurements."""

    known: bool = True
    """Every speculator was observed since this process started."""
    restarting: int = 0
    """How many of the others restart."""
    failed: int = 0
    """How many restarts of the others failed."""
    measured_first: str = ""
    """Name of a speculator of the same namespace whose candidate is measured now, or has waited longer; empty: none."""


@dataclass(frozen=True)
class JobView:
    """One validation Job."""

    name: str
    version: int
    attempt: int
    succeeded: bool = False
    failed: bool = False
    message: str = ""
    """Why the Job failed."""
    waiting: str = ""
    """Why the Job's pod does not start."""
    unplaced_since: datetime | None = None
    """Since when the Job's pod waits for a node. None: it has one, or there is no pod."""
    suspended: bool = False
    """A person or a queue suspended the Job (``spec.suspend``). It has no pod until it is resumed."""

    @property
    def finished(self) -> bool:
        return self.succeeded or self.failed


@dataclass(frozen=True)
class RefusedJob:
    """A Job that the API server refused to create, and the API server's reason."""

    name: str
    message: str


SIGNING_KEYS_MISSING = "SigningKeysMissing"
"""Reason of a view while the keys that sign the records do not exist, or cannot be used."""
TAKEN_OVER = "TakenOver"
"""Reason of a store whose root another speculator took over from this one."""
PATH_REFUSED = "PathRefused"
"""Reason of a store whose root is another speculator's, and is not taken over."""
RECORDS_LOST = "RecordsLost"
"""Reason of a store that can be read, and lacks the channel."""
TRAINER_SILENCE = timedelta(minutes=5)
"""Age after which the trainer's record tells nothing about the present. A waiting trainer rewrites its record after
45 s at the latest, and at rest the operator reads the record every 30 s."""


@dataclass(frozen=True)
class StoreView:
    """The small records in the store. When ``error`` is set the store could not be read, and the rest is empty."""

    reason: str = "Ready"
    error: str = ""
    lineage: Lineage | None = None
    channel: Channel | None = None
    registrations: Mapping[int, Registration] = field(default_factory=dict)
    """The versions that may matter now: newest, active, previous, candidate, rolled out and pinned."""
    kept: tuple[int, ...] = ()
    """All registered versions that have not expired, oldest first."""
    expired: frozenset[int] = frozenset()
    """The versions whose weights the trainer deletes, or has deleted (``training.draftHistoryLimit``)."""
    evidence: tuple[Evidence, ...] = ()
    """Evidence of the active version, of newer ones, and of older ones that the status, a pin or an annotation names.

    The verdicts are the operator's own, computed from the samples with the bars of the spec.
    """
    trainer: TrainerStatus | None = None

    @property
    def ok(self) -> bool:
        return not self.error

    def trainer_is_silent(self, now: datetime) -> bool:
        """Whether the trainer wrote nothing for :data:`TRAINER_SILENCE`.

        A time far after ``now`` counts as silence too.
        """
        return self.trainer is not None and abs(now - self.trainer.updated) > TRAINER_SILENCE

    @property
    def newest(self) -> int | None:
        return max(self.registrations, default=None)

    def may_be_pinned(self, version: int) -> bool:
        """Whether ``version`` is the initial draft, ever passed the gate (against any active version), or was active
        before, with the weights that the channel names. An expired version has no weights, unless it is active or
        previous.
        """
        registration = self.registrations.get(version)
        if registration is None or self.channel is None or registration.lineage != self.channel.lineage:
            return False
        if version == INITIAL_VERSION or self.channel.digest_of(version) == registration.digest:
            return True
        return version not in self.expired and any(
            e.verdict.kind is VerdictKind.PASS and e.candidate_digest == registration.digest
            for e in self.evidence_of(version)
        )

    def evidence_of(self, version: int) -> tuple[Evidence, ...]:
        """Evidence of ``version``, first attempt first."""
        return tuple(sorted((e for e in self.evidence if e.version == version), key=lambda e: e.attempt))

    def promotion_evidence(self, version: int) -> Evidence | None:
        """The evidence that allows ``version`` to replace the version that is active now (promise 1), if any."""
        if self.channel is None or version not in self.registrations:
            return None
        registration, active = self.registrations[version], self.registrations.get(self.channel.active)
        if active is None:
            return None
        for evidence in reversed(self.evidence_of(version)):
            if (
                evidence.verdict.kind is VerdictKind.PASS
                and evidence.active_version == self.channel.active
                and evidence.active_digest == active.digest
                and evidence.lineage == self.channel.lineage == registration.lineage
                and evidence.candidate_digest == registration.digest
            ):
                return evidence
        return None


@dataclass(frozen=True, slots=True)
class CounterSample:
    """Engine counters of one pod at ``time``."""

    boot: str
    time: datetime
    answer_tokens: int
    verify_rounds: int


@dataclass(frozen=True)
class Observed:
    """One observation of one speculator."""

    owner: Owner
    spec: SpeculatorSpec
    status: SpeculatorStatus
    pods: tuple[PodView, ...] = ()
    jobs: tuple[JobView, ...] = ()
    deployment: WorkloadView | None = None
    deployed: DeployedTemplate | None = None
    """None while the inference Deployment does not exist."""
    fleet: FleetView = FleetView()
    trainer: WorkloadView | None = None
    store: StoreView = StoreView()
    keys_exist: bool = False
    """Whether the Secret with the generated keys exists and is ours."""
    recent_counters: Mapping[str, CounterSample] = field(default_factory=dict)
    """By pod name. The samples feed only the figures in the status."""
    observation_gap: bool = False
    """The operator did not observe for a while, or the clock was set (see ``reconciler``): deadlines restart now."""
    refused_by_epoch: int = 0
    """The highest epoch for which an agent refused our last requests; 0: no agent has seen a higher epoch than ours."""
    abort: int | None = None
    """A person rejects this version, by annotation."""
    apply_errors: tuple[str, ...] = ()
    """The children that the API server refused in the last reconcile, each with the API server's reason."""
    refused_job: RefusedJob | None = None
    """The Job refused in the last reconcile. A restarted operator does not remember the refusal and tries once more."""
    spec_fault: str = ""
    """The wrong fields of the stored spec, and why. ``spec`` then has their defaults, and must not shape anything new.

    A version that live traffic rejects is still rolled back then.
    """
    name_taken: tuple[str, ...] = ()
    """Children that were not applied because an object of that name belongs to somebody else: ``Service chat``."""

    @property
    def unplaced_pods(self) -> int:
        """Wanted pods that have no place: they wait for a node, or the API server refuses to create them (a quota).

        They may never start, so nothing waits for them.
        """
        waiting = sum(view.waits_for_node for view in self.pods)
        refused = self.deployment is not None and bool(self.deployment.message)
        existing = sum(not view.terminating for view in self.pods)
        return waiting + (max(self.spec.serving.replicas - existing, 0) if refused else 0)
