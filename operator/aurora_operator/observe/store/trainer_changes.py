"""Remembers when the trainer's record changed last, by the operator's own clock. The trainer's may be another one."""

from __future__ import annotations

from datetime import datetime

from aurora_protocol.training_records import TrainerStatus


class TrainerChanges:
    """The changes of the trainer's record in one store. A restarted operator begins anew, and knows no change."""

    def __init__(self) -> None:
        self._updated: datetime | None = None
        """The time in the record that was read last."""
        self._changed: datetime | None = None

    def last_change(self, record: TrainerStatus | None, now: datetime) -> datetime | None:
        """When the time in the record changed last; None while no change was seen.

        Args:
            record: as a read found it that ended at ``now``. None: the read found no record, which is no change.
        """
        if record is None:
            return None
        if self._updated not in (None, record.updated):
            self._changed = now
        self._updated = record.updated
        return self._changed
