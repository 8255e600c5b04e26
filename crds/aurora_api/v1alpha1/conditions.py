"""Conditions of a speculator (KEP-1623), with the meaning that kstatus, Flux and Argo CD expect.

``Reconciling`` and ``Stalled`` are abnormal when True; all others are normal when True. At most one of the two is True.
docs/reference/conditions.md has the reasons.

Invariant: ``lastTransitionTime`` changes only when ``status`` changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from pydantic import Field

from aurora_api.base import Model, Timestamp

MAX_MESSAGE_CHARACTERS: Final = 32768
"""Longest message of a condition."""


class ConditionType(StrEnum):
    READY = "Ready"
    """Clients are served, and no person must act. False otherwise."""
    RECONCILING = "Reconciling"
    """Abnormal when True: pods are being started, replaced or swapped until they are as the spec asks."""
    STALLED = "Stalled"
    """Abnormal when True: nothing gets on until a person acts. Reason and message say what to do."""
    STORAGE_READY = "StorageReady"
    """The store can be read and written, and honours create-once."""
    SERVING_READY = "ServingReady"
    """Every wanted inference pod has the current template, is ready and serves the version that it should."""
    TRAINER_READY = "TrainerReady"
    """The trainer runs, or training is suspended."""


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


def _type_schema(schema: dict[str, Any]) -> None:
    """Any type, as in Kubernetes' own conditions: a list of types would refuse those of a newer operator."""
    schema.pop("anyOf")
    schema |= {"type": "string", "maxLength": 316, "pattern": r"^[A-Za-z]([A-Za-z0-9./-]*[A-Za-z0-9])?$"}


class Condition(Model):
    """One statement about the speculator."""

    type: ConditionType | str = Field(
        union_mode="left_to_right",
        json_schema_extra=_type_schema,
        description="Ready: clients are served, no person must act. StorageReady: the store can be used. ServingReady:"
        " every wanted pod is ready and serves the right version. TrainerReady: the trainer runs, or training is"
        " suspended. Abnormal when True: Reconciling (pods are on their way to what the spec asks for) and Stalled (a"
        " person must act).",
    )
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, in one word for programs.",
    )
    message: str = Field(
        default="",
        max_length=MAX_MESSAGE_CHARACTERS,
        description="Why, in a sentence for people.",
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
