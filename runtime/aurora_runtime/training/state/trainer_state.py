"""The trainer's resumable state in the store.

Invariant: weights and the list of shards that they have learnt from travel in one record, written after its data. So
whatever moment a kill chooses, no shard is part of the weights twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aurora_protocol.draft_records import FileRef, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage
from aurora_store import Keys, Registry
from aurora_store.errors import DigestMismatch, ObjectMissing

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class StoredState:
    """A stored state and its tensors."""

    record: TrainerState
    tensors: dict[str, Tensor]


def record_of(registry: Registry, lineage: int) -> TrainerState | None:
    """What :func:`read` gives, without its tensors."""
    found = _newest(registry, registry.trainer_state_record)
    return found if found is not None and found.lineage == lineage else None


def read(registry: Registry, lineage: int) -> StoredState | None:
    """The newest whole state if it is of this lineage. A damaged one, told in the log, costs what it alone knew."""

    def saved(epoch: int) -> StoredState | None:
        found = registry.trainer_state(epoch)
        return StoredState(found[0], load(found[1])) if found else None

    found = _newest(registry, saved)
    return found if found is not None and found.record.lineage == lineage else None


def _newest(registry: Registry, read: Callable[[int], T | None]) -> T | None:
    for epoch in reversed(registry.trainer_state_epochs()):
        try:
            return read(epoch)
        except (DigestMismatch, ObjectMissing, InvalidRecord, SafetensorError) as error:
            log.error("the trainer state of epoch %d is damaged; trying the one before: %s", epoch, error)  # noqa: TRY400
    return None


def build(
    session: Session,
    ledger: ShardLedger,
    tally: VocabularyCoverage,
    owed: ReplayBudget,
    held: Mapping[str, Tensor],
    *,
    epoch: int,
    lineage: int,
    trained_tokens: int,
    last: Registration,
) -> tuple[TrainerState, bytes]:
    """A state ready to be stored; ``held`` is what :func:`recall.state` tells. Built once per save, so that a repeated
    upload sends the very same bytes."""
    tensors = {**session.state(), **tally.state(), **owed.state(), **held}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    record = TrainerState(
        epoch=epoch,
        lineage=lineage,
        step=session.steps,
        trained_tokens=trained_tokens,
        consumed=ledger.consumed,
        retired=ledger.retired,
        forgotten=ledger.forgotten,
        file=FileRef(name=Keys.trainer_state_file(digest), sha256=digest, size=len(data)),
        registered_acceptance_length=last.held_out_acceptance_length,
        registered_tokens=last.trained_tokens,
        last_registered=last.version,
        created=utc_now(),
    )
    return record, data
