"""Conditions of a speculator (KEP-1623): their types, reasons and the rule for transition times.

``Ready``            set always; True when pods serve the active version and nothing below is wrong.
``StorageReady``     the store can be written and keeps create-once.
``ServingReady``     every wanted inference pod serves the version it should.
``TrainerReady``     the trainer runs (True, reason Suspended, when training is suspended).
``CandidateValidated``  present once a candidate was measured; reason is the verdict.
``RolloutProgressing``  present while or after a roll; True while pods are being swapped.
``Degraded``         abnormal-true: something needs a human.

Invariant: ``lastTransitionTime`` changes only when ``status`` changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model, Timestamp


class ConditionType(StrEnum):
    READY = "Ready"
    STORAGE_READY = "StorageReady"
    SERVING_READY = "ServingReady"
    TRAINER_READY = "TrainerReady"
    CANDIDATE_VALIDATED = "CandidateValidated"
    ROLLOUT_PROGRESSING = "RolloutProgressing"
    DEGRADED = "Degraded"


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    type: ConditionType
    status: ConditionStatus
    reason: str = Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = Field(default="", max_length=32768)
    observed_generation: int = Field(default=0, ge=0)
    last_transition_time: Timestamp


def merge(old: Sequence[Condition], new: Sequence[Condition]) -> tuple[Condition, ...]:
    """``new`` with the transition times of ``old`` where the status did not change."""
    known = {c.type: c for c in old}
    return tuple(
        c.model_copy(update={"last_transition_time": known[c.type].last_transition_time})
        if c.type in known and known[c.type].status is c.status
        else c
        for c in new
    )
