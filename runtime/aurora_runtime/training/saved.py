"""The trainer's resumable state in the store.

Invariant: weights and the list of shards that they have learnt from travel in one record, written after its data. So
whatever moment a kill chooses, no shard is part of the weights twice.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aurora_api.errors import InvalidRecord
from aurora_api.records import FileRef, Registration, TrainerState
from aurora_runtime.errors import DigestMismatch, ObjectMissing
from aurora_runtime.store import Registry
from aurora_runtime.training.ledger import Ledger
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.session import Session

STATE_FILE = "state.safetensors"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A stored state and its tensors."""

    record: TrainerState
    tensors: dict[str, Tensor]


def record_of(registry: Registry, lineage: int) -> TrainerState | None:
    """The newest state of this lineage without its tensors; None as in :func:`read`."""
    try:
        found = registry.trainer_record()
    except InvalidRecord as error:
        log.error("the stored trainer state is damaged: %s", error)  # noqa: TRY400
        return None
    return found if found is not None and found.lineage == lineage else None


def read(registry: Registry, lineage: int) -> Saved | None:
    """The newest state of this lineage; None when there is none or it is damaged (said in the log)."""
    try:
        found = registry.trainer_state()
        if found is None or found[0].lineage != lineage:
            return None
        return Saved(found[0], load(found[1]))
    except (DigestMismatch, ObjectMissing, InvalidRecord, SafetensorError) as error:
        log.error("the stored trainer state is damaged; starting from the last version: %s", error)  # noqa: TRY400
        return None


def build(
    session: Session, ledger: Ledger, *, epoch: int, lineage: int, trained_tokens: int, last: Registration
) -> tuple[TrainerState, bytes]:
    """A state ready to be stored. Built once per save, so that a repeated upload sends the very same bytes."""
    data = save({name: tensor.contiguous() for name, tensor in session.state().items()})
    record = TrainerState(
        epoch=epoch,
        lineage=lineage,
        step=session.steps,
        trained_tokens=trained_tokens,
        consumed=ledger.consumed,
        retired=ledger.retired,
        forgotten=ledger.forgotten,
        file=FileRef(name=STATE_FILE, sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        best_accept_length=last.held_out_accept_length,
        registered_tokens=last.trained_tokens,
        last_registered=last.version,
        created=utc_now(),
    )
    return record, data
