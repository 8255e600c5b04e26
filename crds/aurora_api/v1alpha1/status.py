"""``status`` of an AuroraSpeculator: observations and decisions of the operator, for people and for ``kubectl``.

Invariant: after a restart the operator goes on from the status, the store and the pods, never from memory. State that
only the operator needs is in ``status.operatorState``, which is not an API.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from aurora_api.base import RewrittenModel, Timestamp
from aurora_api.v1alpha1.conditions import Condition
from aurora_api.v1alpha1.training import TrainingWorth

MAX_PODS_SHOWN = 64
MAX_HISTORY = 20
MAX_REJECTED = 64
"""Most rejected versions that the channel lists. The status also lists those that its candidate and roll are about."""


class RolloutPhase(StrEnum):
    IDLE = "Idle"
    CANARY = "Canary"
    ROLLING = "Rolling"
    WATCHING = "Watching"
    ROLLING_BACK = "RollingBack"
    PAUSED = "Paused"


class VersionStatus(RewrittenModel):
    """One version of the draft, with its measured speed."""

    version: int = Field(ge=0, description="Number of the version. The trainer counts up from 0, the initial draft.")
    digest: str = Field(default="", description=("SHA-256 of the draft's weights file in the store."))
    speedup: str | None = Field(
        default=None,
        description=(
            "Measured throughput over the target without speculation: estimate and interval, for example 1.52x"
            " (1.45-1.60). It changes only when a measurement ends. `speedupSource` names its hardware, and"
            " `status.acceptLength` follows live traffic."
        ),
    )
    gain: str | None = Field(
        default=None,
        description=(
            "Measured throughput over the version that was active during the measurement: estimate and interval,"
            " for example 1.10x (1.07-1.13)."
        ),
    )
    speedup_source: str | None = Field(
        default=None, description="Hardware, data type and concurrency with which speedup and gain were measured."
    )
    evidence: str | None = Field(default=None, description="Key of the measurement's record in the store.")
    since: Timestamp | None = Field(
        default=None,
        description=(
            "When the active version became active, or when the candidate's present attempt began or failed."
            " Unset for the previous version, and while the candidate waits before its measurement: for held-out"
            " requests, a ready pod or the end of a pin."
        ),
    )


class CandidatePhase(StrEnum):
    VALIDATING = "Validating"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    INCONCLUSIVE = "Inconclusive"
    FAILED = "Failed"


class CandidateStatus(VersionStatus):
    """The version that is being measured, or was measured last."""

    version: int = Field(
        ge=0, description="The version that is being measured while `phase` is Validating, else the one measured last."
    )
    phase: CandidatePhase = Field(
        description="Validating: the measurement waits or runs. Validated: the version passed and may be rolled out."
        " Rejected, Inconclusive: the version is never rolled out. An inconclusive one could not be decided within its"
        " rounds, or gave way to a newer version. Failed: the measurement could not be made and is"
        " repeated later."
    )
    attempt: int = Field(default=1, ge=1, description="Number of the measurement of this version, counted from 1.")
    job: str | None = Field(default=None, description="Name of the Job that measures. Its log says more.")
    pod: str | None = Field(
        default=None, description=("The replica that the candidate is measured on. Unset with `measureOn: Job`.")
    )
    waiting_version: int | None = Field(
        default=None,
        description=(
            "An older version that passed its measurement and waits for its roll. Measuring this candidate does"
            " not block that roll."
        ),
    )
    took_over_from: int | None = Field(
        default=None,
        description="The version whose undecided measurement gave way to this candidate's. This candidate's measurement"
        " gives way to no other.",
    )
    message: str = Field(default="", description="The present activity, or why the measurement ended as it did.")

    @property
    def waits_to_begin(self) -> bool:
        """Whether the measurement may not begin yet."""
        return self.phase is CandidatePhase.VALIDATING and self.since is None


class RolloutStatus(RewrittenModel):
    """The roll in progress, or the last one."""

    phase: RolloutPhase = Field(
        default=RolloutPhase.IDLE,
        description=(
            "Idle: no roll. Canary: the first pods get the version and are judged. Rolling: the other pods get"
            " it. Watching: the version is active and still judged. RollingBack: all pods return to the version"
            " before this roll. Paused: no further pod gets the version."
        ),
    )
    version: int | None = Field(default=None, description="The version of this roll.")
    updated: int = Field(default=0, ge=0, description="Number of ready pods that serve this version.")
    total: int = Field(
        default=0,
        ge=0,
        description=(
            "Number of pods in the roll. A replica that is lent to a measurement, or waits for a node, is not counted."
        ),
    )
    started: Timestamp | None = Field(default=None, description="When the roll started.")
    progressed: Timestamp | None = Field(
        default=None,
        description=(
            "When the roll last made progress: a pod changed its version, or the phase changed. The progress"
            " deadline counts from here. Unset while too many pods are not ready."
        ),
    )
    epoch: int = Field(
        default=0,
        ge=0,
        description="Fencing number. Grows with every decision and is sent with every request to a pod, so that a pod"
        " refuses requests of an outdated decision.",
    )
    last_judgement: str = Field(
        default="",
        description=("Result of the last interval in which live traffic judged this version, with its figures."),
    )
    message: str = Field(
        default="",
        description=(
            "Present activity of the roll, or why the roll waits or ended. The next roll overwrites it: `history`"
            " keeps the reasons."
        ),
    )


class PodStatus(RewrittenModel):
    """One inference pod."""

    name: str = Field(description="Name of the pod.")
    version: int | None = Field(default=None, description="Version that the engine serves. Unset while not known.")
    checksum: str | None = Field(
        default=None, description="The engine's checksum of the loaded draft weights. Equal in all pods of one version."
    )
    state: str = Field(
        default="",
        description=(
            "Ready, Pending, Starting, Terminating or AgentUnreachable. During a swap: Staging (the pod downloads a"
            " draft), Swapping or SwapFailed. While the pod is lent to a measurement: Draining, Measuring or"
            " Returning. If a container does not run: Kubernetes' reason."
        ),
    )
    accept_length: str | None = Field(
        default=None, description="Answer tokens per verify round over about the last minute, bonus token included."
    )


class StartStatus(RewrittenModel):
    """The start in progress of the inference pods: no pod has served clients yet."""

    since: Timestamp = Field(
        description=(
            "When the start began: with its first pod or, if the API server refuses pods, with the first refusal. A"
            " changed pod template restarts the clock. A replacement pod does not restart it."
        )
    )
    deadline: Timestamp = Field(
        description=(
            "When the start is too late, by default 3900 s after `since`. From then on the condition Available has the"
            " reason StartTimeout, or StartFailed if a container fails."
        )
    )
    template: str = Field(default="", description="Digest of the pod template that is starting.")
    last_end: str = Field(
        default="",
        description=(
            "Name of the newest pod of this start that was evicted, preempted or deleted, with Kubernetes' reason, as"
            " in `chat-7d4b9 (Evicted: The node was low on resource: memory)`. Empty until the operator has seen such a"
            " pod."
        ),
    )
    last_end_created: Timestamp | None = Field(
        default=None, description="When the pod of `lastEnd` was created. An older pod does not take its place."
    )


class TagErasureStatus(RewrittenModel):
    """The last report about one tag of `training.eraseTags`."""

    tag: str = Field(description="Hash of the tag.")
    number: int = Field(description="Number of the report about this tag, from 1.")
    traces_removed: int = Field(description="Traces with the tag that were removed.")
    shards_rewritten: int = Field(description="Shards that were written again without them.")
    shards_scanned: int = Field(description="Shards that the last scan read.")
    remaining_traces: int = Field(
        description="Traces with the tag that the last scan found: 0, unless a client goes on sending the tag."
    )
    versions: list[int] = Field(
        default_factory=list,
        description="The last 20 versions that may have learned from the removed traces. So may every later version of"
        " their lineage.",
    )
    completed: Timestamp = Field(description="When the last scan ended.")


class TrainingStatus(RewrittenModel):
    """The trainer's last report. Refreshed at most every 30 s while it trains."""

    phase: str = Field(
        default="", description="Activity of the trainer: Starting, WaitingForTraces, Training or Suspended."
    )
    step: int = Field(default=0, description="Number of optimizer steps so far.")
    trained_tokens: int = Field(
        default=0, description=("Number of traced token positions trained on so far, each counted once.")
    )
    steps_per_minute: str | None = Field(
        default=None,
        description="Optimizer steps per minute over the last minute or more of training. Time in which the trainer"
        " waits for traces does not count.",
    )
    pending_shards: int | None = Field(
        default=None,
        description="Shards of new traces that wait to be trained. A number that keeps growing says that the trainer"
        " falls behind.",
    )
    held_out_accept_length: str | None = Field(
        default=None,
        description=(
            "Answer tokens per verify round that the newest draft would reach on held-out requests, bonus token"
            " included."
        ),
    )
    vocabulary_coverage: str | None = Field(
        default=None,
        description="Share of held-out answer tokens that are in the draft's vocabulary, from 0 to 1. The draft can"
        " propose no others.",
    )
    erasures: list[TagErasureStatus] = Field(
        default_factory=list, description="The last report about each tag of `training.eraseTags`."
    )
    worth: TrainingWorth = Field(
        default_factory=TrainingWorth, description="The cost of training and the saving of speculation."
    )


class HistoryEntry(RewrittenModel):
    """One decision about a version."""

    time: Timestamp = Field(description="When it was decided.")
    event: str = Field(
        description=(
            "Promoted: became active. Rejected, Inconclusive: ended by its measurement. RolledBack: failed in its"
            " roll. RolloutStopped: its roll ended without blame. Paused, Resumed: by a person. Vouched: a person"
            " ended its judgement. Pinned: by a person."
        )
    )
    version: int = Field(description="The version that the decision is about.")
    message: str = Field(default="", description="Why it was decided.")


class OperatorIdentity(RewrittenModel):
    """An installation of the operator."""

    installation: str = Field(
        description="Namespace and name of the Lease that the installation's replicas compete for."
    )
    version: str = Field(default="", description="Version of the operator.")

    def __str__(self) -> str:
        return f"operator {self.installation} (version {self.version})"


class SpeculatorStatus(RewrittenModel):
    """Observed state."""

    observed_generation: int = Field(
        default=0, description="metadata.generation of the spec that this status is about."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description=("Ready, Available and the conditions behind them: see `conditions.type`."),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    lineage: int | None = Field(
        default=None,
        description=(
            "Number of the lineage: all drafts that share target, architecture and size of the vocabulary map."
        ),
    )
    store_root: str = Field(
        default="",
        description="Folder of this speculator in the bucket. Give it to `spec.store.restoreFrom` of another speculator"
        " to go on from here.",
    )
    active: VersionStatus | None = Field(default=None, description="The version that all pods should serve.")
    previous: VersionStatus | None = Field(
        default=None, description="The version that was active before, and that a rollback returns to."
    )
    candidate: CandidateStatus | None = Field(
        default=None, description="The version that is being measured, or was measured last."
    )
    rollout: RolloutStatus = Field(default_factory=RolloutStatus, description="The roll in progress, or the last one.")
    training: TrainingStatus = Field(default_factory=TrainingStatus, description="The trainer's last report.")
    accept_length: str | None = Field(
        default=None,
        description="Answer tokens per verify round of live traffic, bonus token included, over all pods and about the"
        " last minute. Keeps its last value while there is no traffic.",
    )
    estimated_speedup: str | None = Field(
        default=None,
        description="Throughput of live traffic over no speculation, as the pods' engines estimate it from the costs of"
        " their own verify rounds, for example ~1.8x. An estimate, over all pods and about the last minute:"
        " `active.speedup` is measured. Unset while no engine chooses the size of its rounds. Keeps its last value"
        " while there is no traffic.",
    )
    updated: str = Field(
        default="", description="Ready pods that serve the version they should, of spec.serving.replicas: for example"
        " 2/3."
    )  # fmt: skip
    replicas: int = Field(
        default=0,
        description=(
            "Number of inference pods that exist and are not terminating, for the scale subresource. Pods that are"
            " lent to a measurement or wait for a node count. The extra pods of an update do not: an autoscaler would"
            " take them for wanted ones."
        ),
    )
    ready_replicas: int = Field(default=0, description="Number of inference pods whose engine is ready.")
    selector: str = Field(default="", description="Label selector of the inference pods, for the scale subresource.")
    traces: int = Field(
        default=0,
        description=(
            "Number of traced answer tokens that the present pods have uploaded. It falls when a pod is replaced."
        ),
    )
    rejected: list[int] = Field(
        default_factory=list,
        description=(
            "Versions newer than the active one that are never rolled out: their measurement, live traffic or a"
            " person rejected them. The list holds the newest 64, and older ones while `candidate` or `rollout` is"
            " about them. Versions that left the list are not offered again either."
        ),
    )
    start: StartStatus | None = Field(
        default=None,
        description=(
            "The start of the inference pods, from the first pod (or the first refusal of one) after the creation or a"
            " scale-up from zero until a pod serves clients. Unset otherwise."
        ),
    )
    pods: list[PodStatus] = Field(
        default_factory=list, max_length=MAX_PODS_SHOWN, description="The inference pods, the first 64 by name."
    )
    history: list[HistoryEntry] = Field(
        default_factory=list, max_length=MAX_HISTORY, description="The last 20 decisions, oldest first."
    )
    operator: OperatorIdentity | None = Field(
        default=None,
        description=(
            "The installation of the operator that acts on this speculator. Another installation that finds its own"
            " name replaced here stops acting on the speculator, and says so in an event."
        ),
    )
    operator_state: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "Opaque state from which a restarted operator resumes a roll. Not an API: do not read or edit it. If"
            " it is lost, the roll stops, and its version can be rolled out again."
        ),
        # Atomic: server-side apply replaces the map as a whole. A granular map that loses its last key becomes null.
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"},
    )

    def versions(self) -> frozenset[int]:
        """All versions that the status names: the operator reads their records from the store to go on."""
        versions = {slot.version for slot in (self.active, self.previous, self.candidate) if slot is not None}
        waiting_version = self.candidate.waiting_version if self.candidate is not None else None
        return frozenset(
            versions | {version for version in (waiting_version, self.rollout.version) if version is not None}
        )
