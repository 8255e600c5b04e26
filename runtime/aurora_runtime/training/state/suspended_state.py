"""Reads from the stored states which shards a suspended trainer may not delete.

Why: a lifecycle rule may archive the data of a state while training is suspended for long, or the KMS key of the data
may be disabled. Traces still arrive, and their limits still hold.

Invariants: no shard that any stored state lists is taken for a new one. If even a record is refused, nothing is known
about the shards.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aurora_protocol.draft_records import Lineage
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.state import trainer_state
from aurora_store.errors import ObjectRefused, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuspendedState:
    """The record to keep shards by, without the data, which may have gigabytes."""

    record: TrainerState | None
    refusal: str = ""
    """Why the store does not give the state. Empty when the state was read."""

    @property
    def knows_shards(self) -> bool:
        """Whether it is known which shards a stored state lists."""
        return self.record is not None or not self.refusal


def read_suspended(registry: PodRegistry, lineage: Lineage) -> SuspendedState:
    """The record of the newest good state, or one for the shards of all states when the store refuses the data.

    The data are checked where they can be read: the record of a damaged state may lack shards that the state before it
    still needs. Raises :class:`StoreError` while the store is away.
    """
    try:
        stored = trainer_state.read(registry, lineage)
    except ObjectRefused as error:
        log.warning("the trainer's state cannot be read: %s", error)
        return SuspendedState(
            _record_of_all_states(registry), f"the trainer's state cannot be read, and training needs it: {error}"
        )
    return SuspendedState(stored.record if stored else None)


def _record_of_all_states(registry: PodRegistry) -> TrainerState | None:
    """A record that lists the shards of all stored states. None when any of their records cannot be read."""
    try:
        read = [registry.trainer_state_record(epoch) for epoch in registry.trainer_state_epochs()]
    except (StoreError, InvalidRecord) as error:
        log.warning("only age bounds the traces, because a record of the trainer's state cannot be read: %s", error)
        return None
    records = [record for record in read if record is not None]
    consumed = dict.fromkeys(key for record in records for key in record.consumed)
    retired = dict.fromkeys(key for record in records for key in record.retired if key not in consumed)
    shards = {"consumed": tuple(consumed), "retired": tuple(retired)}
    return records[-1].model_copy(update=shards) if records else None
