"""The versions in ``status``: what was measured of them, and which one is a candidate or being rolled out."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model, Timestamp


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
