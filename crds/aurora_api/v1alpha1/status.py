"""Status of a speculator: the story that ``kubectl get`` tells.

Invariant: what the rollout needs to go on after an operator restart is here or in the store, never in memory.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_api.v1alpha1.conditions import Condition
from aurora_protocol.agent_api import LiveCounters

MAX_PODS_SHOWN = 64
MAX_HISTORY = 20


class RolloutPhase(StrEnum):
    IDLE = "Idle"
    CANARY = "Canary"
    ROLLING = "Rolling"
    WATCHING = "Watching"
    ROLLING_BACK = "RollingBack"
    PAUSED = "Paused"


class VersionStatus(Model):
    """One draft version in the slot it has."""

    version: int = Field(ge=0)
    digest: str = ""
    speedup: str | None = Field(
        default=None, description="Over no speculation: estimate and interval, e.g. 1.52x (1.45-1.60)."
    )
    gain: str | None = Field(default=None, description="Over the version it replaced: estimate and interval.")
    speedup_source: str | None = Field(default=None, description="Hardware and concurrency behind the figures.")
    evidence: str | None = Field(default=None, description="Key of the evidence in the store.")
    since: Timestamp | None = None


class CandidatePhase(StrEnum):
    VALIDATING = "Validating"
    VALIDATED = "Validated"
    REJECTED = "Rejected"
    INCONCLUSIVE = "Inconclusive"
    FAILED = "Failed"


class CandidateStatus(VersionStatus):
    phase: CandidatePhase
    attempt: int = Field(default=1, ge=1)
    job: str | None = None
    pod: str | None = Field(default=None, description="The replica that it is measured on.")
    waiting: int | None = Field(
        default=None, description="An older version that passed and waits for its roll; it may start meanwhile."
    )
    message: str = ""


class PodWindow(Model):
    """Counters of one pod's engine when a window began, and the version that it served then."""

    name: str
    boot: str
    version: int
    live: LiveCounters


class AnalysisStatus(Model):
    """Where the live analysis of a roll stands, so that a restarted operator goes on with it."""

    shape: str = Field(default="", description="Digest of how pods serve; another one makes the baseline worthless.")
    since: Timestamp | None = Field(default=None, description="When the window begins.")
    settling: bool = Field(default=False, description="Requests that the former draft began may still be under way.")
    missing_since: Timestamp | None = Field(default=None, description="When a canary was lost from sight.")
    pods: list[PodWindow] = Field(default_factory=list, max_length=MAX_PODS_SHOWN)
    baseline: LiveCounters | None = Field(default=None, description="What the pods did just before the first swap.")
    successes: int = Field(default=0, ge=0, description="Good judgements in a row.")
    failures: int = Field(default=0, ge=0)
    slow: int = Field(default=0, ge=0, description="Windows in a row with more time between tokens than is allowed.")
    message: str = Field(default="", description="The last judgement.")


class RolloutStatus(Model):
    """The roll in progress, or the last one."""

    phase: RolloutPhase = RolloutPhase.IDLE
    epoch: int = Field(default=0, ge=0, description="Fencing number: grows with every decision, sent with every swap.")
    version: int | None = Field(default=None, description="The version being rolled out.")
    updated: int = Field(default=0, ge=0)
    total: int = Field(default=0, ge=0)
    started: Timestamp | None = None
    progressed: Timestamp | None = Field(default=None, description="When a pod last changed version.")
    asked: dict[str, str] = Field(
        default_factory=dict,
        description="Engine start of each pod that serves the version, or was asked to.",
        # Applied as a whole: server-side apply makes null of a granular map that loses its last key.
        json_schema_extra={"x-kubernetes-map-type": "atomic"},
    )
    restarts: int = Field(default=0, ge=0, description="How many of these engines have ended.")
    analysis: AnalysisStatus | None = None
    message: str = ""


class PodStatus(Model):
    name: str
    version: int | None = None
    checksum: str | None = None
    state: str = ""
    accept_length: str | None = None


class TrainingStatus(Model):
    phase: str = ""
    step: int = 0
    trained_tokens: int = 0
    held_out_accept_length: str | None = None
    vocabulary_coverage: str | None = Field(
        default=None, description="Share of held-out answer tokens that the draft can propose at all."
    )
    last_updated: Timestamp | None = None


class HistoryEntry(Model):
    """One decision."""

    time: Timestamp
    event: str = Field(
        description="Promoted, Rejected, Inconclusive, RolledBack, RolloutStopped, Paused, Resumed, Vouched, Pinned."
    )
    version: int
    message: str = ""


class SpeculatorStatus(Model):
    """Observed state."""

    observed_generation: int = 0
    conditions: list[Condition] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    lineage: int | None = None
    active: VersionStatus | None = None
    previous: VersionStatus | None = None
    candidate: CandidateStatus | None = None
    rollout: RolloutStatus = Field(default_factory=RolloutStatus)
    training: TrainingStatus = Field(default_factory=TrainingStatus)
    accept_length: str | None = Field(default=None, description="Live, over the last window, all pods.")
    updated: str = Field(default="", description="Pods serving the version they should, of all.")
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = Field(default="", description="Label selector of the inference pods, for the scale subresource.")
    traces: int = Field(default=0, description="Traced answer tokens uploaded by the current pods.")
    rejected: list[int] = Field(default_factory=list, description="Versions that are never offered again.")
    pods: list[PodStatus] = Field(default_factory=list, max_length=MAX_PODS_SHOWN)
    history: list[HistoryEntry] = Field(default_factory=list, max_length=MAX_HISTORY)

    def versions(self) -> frozenset[int]:
        """The versions in any slot: what the store says of them is needed to go on."""
        slots = {slot.version for slot in (self.active, self.previous, self.candidate) if slot is not None}
        waiting = self.candidate.waiting if self.candidate is not None else None
        return frozenset(slots | {version for version in (waiting, self.rollout.version) if version is not None})
