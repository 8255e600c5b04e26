"""``status`` of an AuroraSpeculator: observations and decisions of the operator, for people and for ``kubectl``."""

from aurora_api.v1alpha1.status.pods import PodStatus
from aurora_api.v1alpha1.status.speculator import (
    MAX_HISTORY,
    MAX_KEPT_SHOWN,
    MAX_PODS_SHOWN,
    MAX_REJECTED,
    NO_STATUS,
    OperatorIdentity,
    SpeculatorStatus,
)
from aurora_api.v1alpha1.status.trainer import TrainingStatus
from aurora_api.v1alpha1.status.versions import (
    AttemptReason,
    CandidatePhase,
    CandidateStatus,
    HistoryEntry,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    VersionStatus,
)

__all__ = [
    "MAX_HISTORY",
    "MAX_KEPT_SHOWN",
    "MAX_PODS_SHOWN",
    "MAX_REJECTED",
    "NO_STATUS",
    "AttemptReason",
    "CandidatePhase",
    "CandidateStatus",
    "HistoryEntry",
    "OperatorIdentity",
    "PodStatus",
    "PreviousVersion",
    "RolloutPhase",
    "RolloutStatus",
    "SpeculatorStatus",
    "TrainingStatus",
    "VersionStatus",
]
