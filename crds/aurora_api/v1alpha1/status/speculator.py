"""``status`` as a whole.

Invariant: after a restart the operator goes on from the status, the store and the pods, never from memory. State that
only the operator needs is in ``status.operatorState``, which is not an API.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.conditions import Condition
from aurora_api.v1alpha1.status.pods import PodStatus
from aurora_api.v1alpha1.status.trainer import TrainingStatus
from aurora_api.v1alpha1.status.versions import (
    CandidateStatus,
    HistoryEntry,
    PreviousVersion,
    RolloutStatus,
    VersionStatus,
)

NO_STATUS: Final = {"observedGeneration": 0}
"""The status of a resource that no operator has seen. kstatus would take a resource without a status for ready."""
MAX_PODS_SHOWN = 64
MAX_HISTORY = 20
MAX_KEPT_SHOWN = 64
MAX_REJECTED = 64
"""Most rejected versions that the channel and the status list."""


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
