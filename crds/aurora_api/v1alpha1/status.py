"""``status`` of an AuroraSpeculator: observations and decisions of the operator, for people and for ``kubectl``.

Invariant: after a restart the operator goes on from the status, the store and the pods, never from memory. State that
only the operator needs is in ``status.operatorState``, which is not an API.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_api.v1alpha1.conditions import Condition

NO_STATUS: Final = {"observedGeneration": 0}
"""The status of a resource that no operator has seen. kstatus would take a resource without a status for ready."""
MAX_PODS_SHOWN = 64
MAX_HISTORY = 20
MAX_KEPT_SHOWN = 64
MAX_REJECTED = 64
"""Most rejected versions that the channel and the status list."""


class RolloutPhase(StrEnum):
    IDLE = "Idle"
    JUDGING = "Judging"
    ROLLING = "Rolling"


class PreviousVersion(Model):
    """The version that was active before."""

    version: int = Field(ge=0, description="Number of the version.")


class VersionStatus(Model):
    """One version of the draft, with its measured speed."""

    version: int = Field(ge=0, description="Number of the version. The trainer counts up from 0, the initial draft.")
    speedup: str | None = Field(
        default=None,
        description=(
            "Measured throughput over the target without speculation: estimate and interval, for example 1.52x"
            " (1.45-1.60). It changes only when a measurement ends. `status.acceptLength` follows live"
            " traffic."
        ),
    )
    gain: str | None = Field(
        default=None,
        description=(
            "Measured throughput over the version that was active during the measurement: estimate and interval,"
            " for example 1.10x (1.07-1.13)."
        ),
    )
    since: Timestamp | None = Field(
        default=None,
        description=(
            "When the active version became active, or when the candidate's present attempt began or failed."
            " Unset while the candidate waits before its measurement: for held-out requests, a ready pod or the end of"
            " a pin."
        ),
    )


class CandidatePhase(StrEnum):
    VALIDATING = "Validating"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    INCONCLUSIVE = "Inconclusive"
    FAILED = "Failed"


class AttemptReason(StrEnum):
    FIRST = "First"
    ACTIVE_CHANGED = "ActiveChanged"
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
    attempt_reason: AttemptReason = Field(
        default=AttemptReason.FIRST,
        description="Why this attempt is made. First: the first one. The former attempt failed (Failed), or compared"
        " with a version that is no longer active (ActiveChanged).",
    )
    not_before: Timestamp | None = Field(
        default=None,
        description="The next attempt begins no earlier. The delay doubles with each attempt, from 30 s to 10 minutes.",
    )
    job: str | None = Field(default=None, description="Name of the Job that measures. Its log says more.")
    pod: str | None = Field(
        default=None, description=("The replica that the candidate is measured on. Unset with `measureOn: Job`.")
    )
    message: str = Field(default="", description="The present activity, or why the measurement ended as it did.")

    @property
    def waits_to_begin(self) -> bool:
        """Whether the measurement may not begin yet."""
        return self.phase is CandidatePhase.VALIDATING and self.since is None


class RolloutStatus(Model):
    """The roll in progress, or the last one."""

    phase: RolloutPhase = Field(
        default=RolloutPhase.IDLE,
        description=(
            "Idle: no roll. Pods that serve another version return to the active one. Judging: live traffic judges the"
            " version, on the first pods, and on all pods once it is active. Rolling: the other pods get it."
        ),
    )
    paused: bool = Field(default=False, description="No further pod gets the version. `waiting` says why.")
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
            " deadline counts from here. Unset while the roll waits for traffic, or while too many pods are not ready."
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
    waiting: str = Field(
        default="",
        description="Why this roll does not go on, or why the next one does not start. Empty if it does.",
    )
    message: str = Field(
        default="",
        description=(
            "Present activity of the roll, or why the roll ended. The next roll overwrites it: `history` keeps the"
            " reasons."
        ),
    )


class HistoryEntry(Model):
    """One decision about a version."""

    time: Timestamp = Field(description="When it was decided.")
    event: str = Field(
        description=(
            "Promoted: became active. Rejected, Inconclusive: ended by its measurement. RolledBack: failed in its"
            " roll. RolloutStopped: its roll ended without blame. Paused: by a person, a wrong spec or an upgrade of"
            " the operator. Pinned: by a person."
        )
    )
    version: int = Field(description="The version that the decision is about.")
    message: str = Field(default="", description="Why it was decided.")


class TrainingStatus(Model):
    """The trainer's last report. Refreshed at most every 30 s while it trains."""

    phase: str = Field(
        default="", description="Activity of the trainer: Starting, WaitingForTraces, Training or Suspended."
    )
    step: int = Field(default=0, description="Number of optimizer steps so far.")
    trained_tokens: int = Field(
        default=0, description=("Number of traced token positions trained on so far, each counted once.")
    )
    held_out_accept_length: str | None = Field(
        default=None,
        description=(
            "Answer tokens per verify round that the newest draft would reach on held-out requests, bonus token"
            " included."
        ),
    )
    devices: str | None = Field(
        default=None,
        description="GPUs that the trainer holds, with their kind: `1 nvidia.com/gpu`. Unset while training is"
        " suspended, or where the trainer has no GPU.",
    )
    saved_devices: str | None = Field(
        default=None,
        description="GPUs that inference pods would need more without speculation, with their kind:"
        " `0.35 nvidia.com/gpu`. The engines estimate it over about the last day, lookup included. What the plugin"
        " itself costs is not deducted, so the true saving is smaller. Unset: not known, because a ready pod has no"
        " estimate. Its engine started less than 10 minutes ago, its rounds have a Fixed shape, or its agent"
        " is silent. Also unset where the engine has no GPU.",
    )


class PodStatus(Model):
    """One inference pod."""

    name: str = Field(description="Name of the pod.")
    version: int | None = Field(
        default=None, description="Version that the engine serves. Unset while not known, and without a draft."
    )
    checksum: str | None = Field(
        default=None, description="The engine's checksum of the loaded draft weights. Equal in all pods of one version."
    )
    state: str = Field(
        default="",
        description=(
            "Ready, WithoutDraft (the pod serves, and has no draft yet), Pending, Starting, Terminating or"
            " AgentUnreachable. During a swap: Staging (the pod downloads a draft), Swapping or SwapFailed. While the"
            " pod is lent to a measurement: Draining, Measuring or Returning. If a container does not run: Kubernetes'"
            " reason."
        ),
    )


class OperatorIdentity(Model):
    """An installation of the operator."""

    installation: str = Field(
        description="Namespace and name of the Lease that the installation's replicas compete for."
    )

    def __str__(self) -> str:
        return f"operator {self.installation}"


class SpeculatorStatus(Model):
    """Observed state."""

    observed_generation: int = Field(
        default=0, description="metadata.generation of the spec that this status is about."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description=("Ready and the conditions behind it: see `conditions.type`."),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    store_root: str = Field(
        default="",
        description="Folder of this speculator in the bucket: `store.prefix` and `store.path`.",
    )
    active: VersionStatus | None = Field(default=None, description="The version that all pods should serve.")
    previous: PreviousVersion | None = Field(
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
        " `active.speedup` is measured. The estimate compares with the pods' own rounds without proposals. A pod that"
        " hardly proposed was 4 to 13 % slower than an engine without speculation (small model on a CPU), so ~1.0x may"
        " hide a loss. Unset while no engine chooses the size of its rounds. Keeps its last value while there is no"
        " traffic.",
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
    rejected: list[int] = Field(
        default_factory=list,
        description=(
            "Versions newer than the active one that are never rolled out: their measurement, live traffic or a"
            " person rejected them. The list holds the newest 64. Versions dropped from it are still never offered"
            " again."
        ),
    )
    kept_versions: list[int] = Field(
        default_factory=list,
        max_length=MAX_KEPT_SHOWN,
        description="Versions whose weights the store keeps, the newest 64: see `spec.training.draftHistoryLimit`."
        " `rollout.pin` may name one of them that passed its measurement.",
    )
    starting: bool = Field(
        default=False, description="No pod has served clients yet since the creation or a scale-up from zero."
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
            "The installation of the operator that acts on this speculator. Another installation that finds this name"
            " does not act, and says so."
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
        return frozenset(versions if self.rollout.version is None else versions | {self.rollout.version})
