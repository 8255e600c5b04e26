"""What runs while a speculator rests: training is suspended or impossible, or no replica is wanted. Pure.

A suspended trainer has two tasks left: to create version 0, without which no pod starts, and to delete traces beyond
``training.traceStorageLimit``. Only inference pods write traces. So the trainer's pod runs while training goes on,
until version 0 exists, and while traces may arrive. Otherwise it would hold its machine for nothing.

Invariant: the store stays bounded. Whenever traces may arrive, a trainer runs that deletes old ones.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.observe.observed import RECORDS_LOST, TAKEN_OVER, Observed

STOPS_TRAINER = (TAKEN_OVER, RECORDS_LOST)
"""Reasons of a store that the trainer may not write to. After a loss of the records it would begin another lineage, and
the records that somebody puts back would be mixed with those of that lineage."""
_STORE_STOP = "storeStop"
"""Name in ``status.operatorState``."""


def trainer_replicas(observed: Observed) -> int:
    """How many trainer pods should run: 1 or 0. A trainer that may write nothing would hold its machine for nothing."""
    if trainer_stop_reason(observed):
        return 0
    needed = not observed.spec.training.suspended or not _version_0_exists(observed) or _traces_may_arrive(observed)
    return int(needed)


def trainer_stop_reason(observed: Observed) -> str:
    """Why the trainer may write nothing to the store, as the reason of a condition; empty when it may.

    While the store cannot be read, the last reading counts, which ``status.operatorState`` keeps. Otherwise each fault
    of the store would start the trainer, and the next reading would stop it again.
    """
    if observed.store.ok:
        return ""
    if observed.store.reason in STOPS_TRAINER:
        return observed.store.reason
    return stored_stop_reason(observed.status)


def stored_stop_reason(status: SpeculatorStatus) -> str:
    """What :func:`trainer_stop_reason` was when the store was read last."""
    reason = status.operator_state.get(_STORE_STOP)
    return reason if reason in STOPS_TRAINER else ""


def with_stop_reason(operator_state: dict[str, Any], observed: Observed) -> dict[str, Any]:
    """``operator_state`` with the reason for which the trainer is stopped, if it is."""
    others = {name: value for name, value in operator_state.items() if name != _STORE_STOP}
    reason = trainer_stop_reason(observed)
    return others | ({_STORE_STOP: reason} if reason else {})


def is_at_rest(spec: SpeculatorSpec) -> bool:
    """Nothing should run: training is suspended, and no replica is wanted. A verdict would be of no use now."""
    return spec.training.suspended and spec.serving.replicas == 0


def _version_0_exists(observed: Observed) -> bool:
    """The channel's first record is written after version 0. The status still knows it while the store is away."""
    return observed.store.channel is not None or observed.status.active is not None


def _traces_may_arrive(observed: Observed) -> bool:
    """Inference pods trace requests, or are wanted and will. Terminating pods upload their last traces."""
    traced = Decimal(observed.spec.capture.sample_ratio) > 0
    return traced and (observed.spec.serving.replicas > 0 or bool(observed.pods))
