"""What runs while a speculator rests: training is suspended or impossible, or no replica is wanted. Pure.

A suspended trainer has two tasks left: to create version 0, without which no pod starts, and to delete traces beyond
``training.traceStorageLimit``. Only inference pods write traces. So the trainer's pod runs while training goes on,
until version 0 exists, and while traces may arrive. Otherwise it would hold its machine for nothing.

Invariant: the store stays bounded. Whenever traces may arrive, a trainer runs that deletes old ones.
"""

from __future__ import annotations

from decimal import Decimal

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, SpeculatorStatus
from aurora_operator.observe.observed import RECORDS_LOST, TAKEN_OVER, Observed

MEASURING = "measuring on the real engine"
STOPS_TRAINER = (TAKEN_OVER, RECORDS_LOST)
"""Reasons of a store that the trainer may not write to. After a loss of the records it would begin another lineage, and
the records that somebody puts back would be mixed with those of that lineage."""
_TELL_OF_THE_STORE = (ConditionType.STORAGE_READY, ConditionType.TRAINER_READY)
AT_REST = "not measured while training is suspended and serving.replicas is 0"


def trainer_replicas(observed: Observed) -> int:
    """How many trainer pods should run: 1 or 0. A trainer that may write nothing would hold its machine for nothing."""
    if trainer_stop_reason(observed):
        return 0
    needed = not observed.spec.training.suspended or not _version_0_exists(observed) or _traces_may_arrive(observed)
    return int(needed)


def trainer_stop_reason(observed: Observed) -> str:
    """Why the trainer may write nothing to the store, as the reason of a condition; empty when it may.

    While the store cannot be read, the last reading counts, which the stored conditions show. Otherwise each fault of
    the store would start the trainer, and the next reading would stop it again.
    """
    if observed.store.ok:
        return ""
    if observed.store.reason in STOPS_TRAINER:
        return observed.store.reason
    told = stored_reasons(observed.status)
    return next((reason for reason in STOPS_TRAINER if reason in told), "")


def stored_reasons(status: SpeculatorStatus) -> frozenset[str]:
    """The reasons of the stored conditions that tell what the last reading of the store found."""
    return frozenset(c.reason for c in status.conditions if c.type in _TELL_OF_THE_STORE)


def is_at_rest(spec: SpeculatorSpec) -> bool:
    """Nothing should run: training is suspended, and no replica is wanted. A verdict would be of no use now."""
    return spec.training.suspended and spec.serving.replicas == 0


def with_rest_message(candidate: CandidateStatus | None, spec: SpeculatorSpec) -> CandidateStatus | None:
    """At rest: ``candidate`` without its start and replica, and with a message that says so. Otherwise ``candidate``
    without that message."""
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING:
        return candidate
    if is_at_rest(spec):
        return candidate.model_copy(update={"message": AT_REST, "since": None, "pod": None})
    return candidate.model_copy(update={"message": MEASURING}) if candidate.message == AT_REST else candidate


def _version_0_exists(observed: Observed) -> bool:
    """The channel's first record is written after version 0. The status still knows it while the store is away."""
    return observed.store.channel is not None or observed.status.active is not None


def _traces_may_arrive(observed: Observed) -> bool:
    """Inference pods trace requests, or are wanted and will. Terminating pods upload their last traces."""
    traced = Decimal(observed.spec.capture.sample_ratio) > 0
    return traced and (observed.spec.serving.replicas > 0 or bool(observed.pods))
