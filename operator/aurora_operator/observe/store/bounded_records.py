"""Cuts the texts and numbers of records to what a status can hold. Pure.

Why: anyone who can write to the bucket chooses these texts and numbers. The API server refuses a status that is too
large or holds a number beyond 64 bits, and a plan goes on only after its status is written. A long text would then hold
back a rollback.

Invariant: a record is cut, never refused. So a longer record of another version stops nothing.
"""

from __future__ import annotations

from typing import Final

from aurora_protocol.evidence_records import Evidence
from aurora_protocol.training_records import TrainerStatus
from aurora_store.errors import bounded_text

MAX_MESSAGE_CHARACTERS: Final = 1000
MAX_REASONS: Final = 32
"""Most reasons of a verdict that are kept. The gate gives one for each bar, and a few more."""


def bounded_trainer_status(record: TrainerStatus) -> TrainerStatus:
    """``record`` with a message that a status can hold."""
    return record.model_copy(update={"message": bounded_text(record.message, MAX_MESSAGE_CHARACTERS)})


def bounded_evidence(record: Evidence) -> Evidence:
    """``record`` with short reasons and names."""
    environment, verdict = record.environment, record.verdict
    reasons = tuple(bounded_text(reason) for reason in verdict.reasons[:MAX_REASONS])
    names = {name: bounded_text(getattr(environment, name)) for name in ("hardware", "dtype")}
    return record.model_copy(
        update={
            "environment": environment.model_copy(update=names),
            "verdict": verdict.model_copy(update={"reasons": reasons}),
            "end_message": bounded_text(record.end_message, MAX_MESSAGE_CHARACTERS),
        }
    )
