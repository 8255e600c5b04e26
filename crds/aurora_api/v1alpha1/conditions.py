"""Conditions of a speculator (KEP-1623): their types, reasons and the rule for transition times.

Always set:

``Ready``            True while clients are served and nothing requires manual action. NameTaken, InvalidSpec and
                     Degraded each make it False. A scale-up, an update of the pods or one unready pod of several leaves
                     it True, with the reason and "n of m" in the message.
``Available``        True while at least one pod that clients can reach serves. The message says n of m.
``StorageReady``     The store can be read and written, and honours create-once.
``ServingReady``     Every wanted inference pod has the current template, is ready and serves the version it should.
``TrainerReady``     The trainer runs. Also True while training is suspended, with reason Suspended.
                     The trainer's pod is then stopped unless something needs it.
``Degraded``         Abnormal when True: something requires manual action. Reason and message name the problem.
``NameTaken``        Abnormal when True: an object of another owner has a name that this speculator needs.
``InvalidSpec``      Abnormal when True: the operator cannot use the spec. The message names the fields.

Set once there is something to say:

``CandidateValidated``   Once there is a candidate. The reason is the candidate's phase; Unknown while it is measured.
                         With the reason MeasurementSuspended, a queue or a person suspended its Job.
``RolloutProgressing``   Once there was a roll. True while pods are swapped or return, and during the watch.
``UpgradePending``       Once an upgrade of the operator changed the pods. True until the pods have restarted.

Invariants: ``lastTransitionTime`` changes only when ``status`` changes. Conditions of a type that this version does not
know are kept, because a newer operator or another controller set them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import Field

from aurora_api.base import RewrittenModel, Timestamp

MAX_MESSAGE_CHARACTERS: Final = 32768
"""Longest message of a condition."""


class ConditionType(StrEnum):
    READY = "Ready"
    AVAILABLE = "Available"
    STORAGE_READY = "StorageReady"
    SERVING_READY = "ServingReady"
    TRAINER_READY = "TrainerReady"
    CANDIDATE_VALIDATED = "CandidateValidated"
    ROLLOUT_PROGRESSING = "RolloutProgressing"
    DEGRADED = "Degraded"
    NAME_TAKEN = "NameTaken"
    INVALID_SPEC = "InvalidSpec"
    UPGRADE_PENDING = "UpgradePending"


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


def _type_schema(schema: dict[str, Any]) -> None:
    """Any type, as in Kubernetes' own conditions: a list of types would refuse those of a newer operator."""
    schema.pop("anyOf")
    schema |= {"type": "string", "maxLength": 316, "pattern": r"^[A-Za-z]([A-Za-z0-9./-]*[A-Za-z0-9])?$"}


class Condition(RewrittenModel):
    """One statement about the speculator."""

    type: ConditionType | str = Field(
        union_mode="left_to_right",
        json_schema_extra=_type_schema,
        description=(
            "Ready: clients are served and nothing requires manual action; to ask only whether clients are served, read"
            " Available. Available: at least one pod serves clients. StorageReady: the store can be read and"
            " written. ServingReady: every wanted pod is ready and serves the right version. TrainerReady: the"
            " trainer runs, or training is suspended. CandidateValidated: the candidate passed its measurement."
            " RolloutProgressing: a roll is in progress, or its version is watched after the promotion. UpgradePending:"
            " the pods still have to restart after an upgrade of the operator. Degraded: something requires manual"
            " action. NameTaken: an object of another owner has a name that the speculator needs. InvalidSpec: the spec"
            " cannot be used."
        ),
    )
    status: ConditionStatus = Field(
        description="True, False or Unknown. True is abnormal for Degraded, NameTaken and InvalidSpec."
    )
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why the status is as it is, in one word for programs.",
    )
    message: str = Field(
        default="",
        max_length=MAX_MESSAGE_CHARACTERS,
        description="Why the status is as it is, in a sentence for people.",
    )
    observed_generation: int = Field(
        default=0, ge=0, description="metadata.generation of the spec that this condition is about."
    )
    last_transition_time: Timestamp = Field(description="When status last changed.")


def with_kept_transition_times(old: Sequence[Condition], new: Sequence[Condition]) -> tuple[Condition, ...]:
    """``new`` with the transition times of ``old`` where the status did not change."""
    known = {c.type: c for c in old}
    return tuple(
        c.model_copy(update={"last_transition_time": known[c.type].last_transition_time})
        if c.type in known and known[c.type].status is c.status
        else c
        for c in new
    )
