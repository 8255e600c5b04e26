"""The trainer's progress and its resumable states.

Invariants: the states are create-once and the highest epoch wins. The newest :data:`KEPT_TRAINER_STATES` are kept. A
state's record is deleted before its data, so a record never names missing data.
"""

from __future__ import annotations

import logging

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState, TrainerStatus
from aurora_store.errors import ObjectMissing, StoreError
from aurora_store.keys import Keys, is_shard_key, trainer_state_epoch
from aurora_store.records.record_store import MAX_RECORDS_LISTED, RecordStore

KEPT_TRAINER_STATES = 2
MAX_STATE_RECORD_BYTES = 256 << 20
"""Largest record of a trainer state. The record names every shard that the state has learned from."""
log = logging.getLogger(__name__)


class TrainerStore(RecordStore):
    """The trainer's status and states."""

    def put_trainer_status(self, status: TrainerStatus) -> None:
        """Overwrite the trainer's status."""
        self.objects.put(Keys.TRAINER_STATUS, status.to_json())

    def trainer_status(self) -> TrainerStatus | None:
        """The trainer's status. None before the trainer has started for the first time."""
        try:
            return TrainerStatus.from_json(self.objects.get(Keys.TRAINER_STATUS))
        except ObjectMissing:
            return None

    def put_trainer_state(self, state: TrainerState, data: bytes) -> None:
        """Write a resumable state, data first, and delete all but the newest :data:`KEPT_TRAINER_STATES`.

        Raises :class:`ObjectExists` when another trainer saved this epoch first. A failure to delete old states is
        only logged: the new state is stored, and the next call deletes what is left of the old ones.
        """
        self.objects.put(Keys.trainer_state_folder(state.epoch) + state.file.name, data)
        self.objects.create(Keys.trainer_state(state.epoch), state.to_json())
        try:
            self._delete_old_states()
        except StoreError as error:
            log.warning("old trainer states were not deleted, so the shards that they name stay too: %s", error)

    def _delete_old_states(self) -> None:
        """Delete the records before the newest :data:`KEPT_TRAINER_STATES`, and all data of their epochs.

        Data may be left without their record, when an earlier deletion was interrupted.
        """
        oldest_kept = min(self.trainer_state_epochs()[-KEPT_TRAINER_STATES:], default=0)
        listed = self.objects.list(Keys.TRAINER_STATE, limit=MAX_RECORDS_LISTED)
        epochs = {epoch for key in listed if (epoch := trainer_state_epoch(key)) is not None}
        for epoch in sorted(epoch for epoch in epochs if epoch < oldest_kept):
            self._delete_trainer_state(epoch)

    def _delete_trainer_state(self, epoch: int) -> None:
        """Delete a state's record, then its folder, with the data of trainers that lost the race for this epoch."""
        self.objects.delete(Keys.trainer_state(epoch))
        for key in list(self.objects.list(Keys.trainer_state_folder(epoch))):
            self.objects.delete(key)

    def trainer_state(self, epoch: int | None = None) -> tuple[TrainerState, bytes] | None:
        """The state of ``epoch``, or the newest one, and its verified data. None when no state is stored."""
        state = self.trainer_state_record(epoch)
        return (state, self.trainer_state_data(state)) if state is not None else None

    def trainer_state_data(self, state: TrainerState, *, max_bytes: int | None = None) -> bytes:
        """The verified data of ``state``.

        Args:
            max_bytes: largest data that are read. None: whatever the record says.

        Raises :class:`InvalidRecord` when the record names larger data, :class:`ObjectMissing` and
        :class:`DigestMismatch`.
        """
        if max_bytes is not None and state.file.size > max_bytes:
            key = Keys.trainer_state(state.epoch)
            raise InvalidRecord(f"{key}: names {state.file.size} bytes; at most {max_bytes} are expected")
        key = Keys.trainer_state_folder(state.epoch) + state.file.name
        return self.objects.get(key, state.file.sha256, max_bytes=state.file.size)

    def trainer_state_record(self, epoch: int | None = None) -> TrainerState | None:
        """The record of the state of ``epoch``, or of the newest one, without its data."""
        epoch = epoch or self.last_trainer_state_epoch()
        if not epoch:
            return None
        state = self._read(
            TrainerState,
            Keys.trainer_state(epoch),
            lambda record: Keys.trainer_state(record.epoch),
            max_bytes=MAX_STATE_RECORD_BYTES,
        )
        if not all(map(is_shard_key, (*state.consumed, *state.retired))):
            raise InvalidRecord(f"{Keys.trainer_state(epoch)}: names a shard by a key that is no shard's")
        return state

    def last_trainer_state_epoch(self) -> int:
        """The highest epoch of a stored state, readable or not. 0 when no state is stored."""
        return max(self.trainer_state_epochs(), default=0)

    def trainer_state_epochs(self) -> list[int]:
        """The epochs of all stored states, readable or not, oldest first."""
        return self._sequence(Keys.TRAINER_STATE, from_start=False)
