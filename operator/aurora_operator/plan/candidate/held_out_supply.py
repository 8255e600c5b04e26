"""Tells what a measurement waits for before it begins: held-out requests. Pure.

Why: a validator that finds too few held-out prompts cannot measure. By then its pod has taken a machine, or a replica
has left its Service. A published head is a candidate before the first request came.

Invariant: a measurement waits only while a trainer reports that there are too few. Where nobody knows, the measurement
begins, and its validator says what is missing.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from aurora_api.v1alpha1.status import CandidateStatus
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.observed import TRAINER_SILENCE
from aurora_protocol.training_records import TrainerStatus

_WAITING: Final = "waiting for held-out requests"


def shortage(record: TrainerStatus | None, spec: ValidationSpec, now: datetime) -> str:
    """Why no measurement may begin, by the trainer's ``record``; empty when one may."""
    if record is None or record.held_out_requests is None or now - record.updated > TRAINER_SILENCE:
        return ""
    if record.held_out_requests >= spec.prompts_needed:
        return ""
    return (
        f"{_WAITING}: {record.held_out_requests} of {spec.prompts_needed} have come, one of each conversation. About"
        " one conversation in eight is held out"
    )


def is_waiting(candidate: CandidateStatus) -> bool:
    """Whether ``candidate`` waits because of a :func:`shortage`."""
    return candidate.message.startswith(_WAITING)
