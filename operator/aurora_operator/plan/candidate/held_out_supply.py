"""Delays a measurement until enough held-out requests exist. Pure.

Why: a validator that finds too few held-out prompts cannot measure. By then its pod has taken a machine, or a replica
has left its Service. A published head is a candidate before the first request came.

Invariant: a measurement waits only while a trainer reports that there are too few, or while the operator has stopped
the trainer that last reported so: then the count cannot grow. Where nobody knows, the measurement begins, and its
validator says what is missing.

A report's age counts by the operator's clock, from the change of the record that the operator saw: the trainer's clock
may be wrong. A restarted operator has seen no change. It then believes a record whose own time is within
``TRAINER_SILENCE`` of now, before or after, and otherwise lets the measurement begin. Such a guess costs at most one
attempt, until the next report. If it waited instead, an operator that restarts often would never measure once the
trainer is gone.
"""

from __future__ import annotations

from datetime import datetime

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.observed import StoreView


def shortage(store: StoreView, spec: ValidationSpec, now: datetime, *, trainer_stopped: bool) -> str:
    """Why no measurement may begin, by the trainer's record; empty when one may.

    Args:
        trainer_stopped: the operator wants no trainer's pod, so an old record still tells the count.
    """
    record = store.trainer
    if record is None or record.held_out_requests is None:
        return ""
    if store.trainer_is_silent(now) and not trainer_stopped:
        return ""
    if record.held_out_requests >= spec.prompts_needed:
        return ""
    return (
        f"waiting for held-out requests: {record.held_out_requests} of {spec.prompts_needed}. One request per"
        " conversation counts, and one conversation in eight is held out"
    )
