"""The trainer's resumable state in the store.

A state is one data file (weights, optimizer moments, average), and one record that names the file and lists the shards
that the weights were trained on.

Invariant: the record is written after its data. After each start, a trainer stores a state before it registers a
version. So whenever a kill comes, no shard is trained twice into the same weights.

The limit: when no undamaged state is left, the trainer starts from the last version with an empty list. The kept shards
are then trained again, on weights that were trained on them before.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from aurora_protocol.draft_records import FileRef, Lineage
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.optim.weight_update import MOMENTS
from aurora_runtime.training.state.learning_state import LearningState
from aurora_runtime.training.state.state_check import check_state, max_state_bytes
from aurora_store import Keys
from aurora_store.errors import DigestMismatch, ObjectMissing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredState:
    """A stored state and its tensors."""

    record: TrainerState
    tensors: dict[str, Tensor]

    @property
    def has_moments(self) -> bool:
        """Whether it holds the optimizer's moments. A trainer that consumed a shard without a step stores none."""
        return any(name.startswith(f"{MOMENTS[0]}.") for name in self.tensors)


def read(registry: PodRegistry, lineage: Lineage) -> StoredState | None:
    """The newest undamaged state, if it belongs to ``lineage``.

    A damaged state is logged and skipped, and so is one that contradicts itself or the lineage
    (:mod:`~aurora_runtime.training.state.state_check`). Shards that only such a state lists as consumed are then
    trained again.
    """
    for epoch in reversed(registry.trainer_state_epochs()):
        try:
            return _read_epoch(registry, lineage, epoch)
        except (DigestMismatch, ObjectMissing, InvalidRecord) as error:
            log.error("the trainer state of epoch %d is damaged; trying the one before: %s", epoch, error)  # noqa: TRY400
    return None


def _read_epoch(registry: PodRegistry, lineage: Lineage, epoch: int) -> StoredState | None:
    record = registry.trainer_state_record(epoch)
    if record is None or record.lineage != lineage.number:
        return None
    tensors = _tensors(registry.trainer_state_data(record, max_bytes=max_state_bytes(lineage)))
    check_state(record, tensors, lineage)
    return StoredState(record, tensors)


def _tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a state's data. Raises :class:`InvalidRecord`, whatever the bytes are."""
    try:
        return load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise InvalidRecord(f"the data are not a safetensors file that this trainer knows ({error})") from error


@dataclass(frozen=True)
class StateSnapshot:
    """A state to store, as it was between two shards. It shares no memory with training."""

    tensors: dict[str, Tensor]
    epoch: int
    lineage: int
    step: int
    trained_tokens: int
    consumed: tuple[str, ...]
    retired: tuple[str, ...]
    forgotten: int

    def encode(self) -> tuple[TrainerState, bytes]:
        """The record and its data. Encode once per save, so that a repeated upload sends the same bytes."""
        data = save({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        record = TrainerState(
            epoch=self.epoch,
            lineage=self.lineage,
            step=self.step,
            trained_tokens=self.trained_tokens,
            consumed=self.consumed,
            retired=self.retired,
            forgotten=self.forgotten,
            file=FileRef(name=Keys.trainer_state_file(digest), sha256=digest, size=len(data)),
            created=utc_now(),
        )
        return record, data


def take_snapshot(learning: LearningState, *, epoch: int, lineage: int) -> StateSnapshot:
    """The state of ``learning`` now."""
    ledger = learning.ledger
    return StateSnapshot(
        tensors=learning.tensors(),
        epoch=epoch,
        lineage=lineage,
        step=learning.session.steps,
        trained_tokens=learning.trained_tokens,
        consumed=ledger.consumed,
        retired=ledger.retired,
        forgotten=ledger.forgotten,
    )
