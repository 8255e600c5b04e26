"""Base of the classes that read and write the records of one speculator: the one reader for what the store holds.

Invariants: an object whose name is not a record's, or whose number is out of sequence, is logged and left out, so it
stops nobody from reading the others. A record is returned only when its own numbers belong to its key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import StoredRecord
from aurora_store.errors import bounded_text
from aurora_store.keys import in_sequence, number_of
from aurora_store.objects import MAX_RECORD_BYTES, ObjectStore

MAX_RECORDS_LISTED = 100_000
"""Most objects of one listing of records. A speculator makes one record for each version or decision."""
MAX_FOREIGN_KEYS = 100
"""Most objects that are logged because they are no records."""
R = TypeVar("R", bound=StoredRecord)
log = logging.getLogger(__name__)


class RecordStore:
    """Records are the ``.json`` objects. Numbers in keys are zero-padded, so key order is number order."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self._foreign_keys: set[str] = set()

    def _numbers(self, prefix: str) -> list[int]:
        """The numbers of the records directly below ``prefix``, in order."""
        numbers = []
        for key in self._json_keys(prefix):
            try:
                numbers.append(number_of(key))
            except InvalidRecord as error:
                self._leave_out(key, str(error))
        return numbers

    def _sequence(self, prefix: str, *, from_start: bool = True) -> list[int]:
        """The numbers of :meth:`_numbers` up to the first that is out of sequence.

        Args:
            from_start: whether the first records are still there. Else the sequence begins with the lowest number.
        """
        numbers = self._numbers(prefix)
        sequence = in_sequence(numbers, 0 if from_start else min(numbers, default=0))
        if len(sequence) < len(numbers):
            text = f"{prefix}{numbers[len(sequence)]:08d}.json is out of sequence; delete it, and find out who wrote it"
            self._leave_out(text, text)
        return sequence

    def _json_keys(self, prefix: str) -> list[str]:
        listed = self.objects.list(prefix, limit=MAX_RECORDS_LISTED)
        return sorted(key for key in listed if key.endswith(".json") and "/" not in key.removeprefix(prefix))

    def _leave_out(self, key: str, reason: str) -> None:
        """Log an object that is no record, once."""
        if key not in self._foreign_keys and len(self._foreign_keys) < MAX_FOREIGN_KEYS:
            self._foreign_keys.add(key)
            log.warning("left out: %s", reason)

    def _read(self, model: type[R], key: str, key_of: Callable[[R], str], *, max_bytes: int = MAX_RECORD_BYTES) -> R:
        """The record at ``key``. ``key_of`` returns the key to which a record's own numbers belong.

        Raises :class:`ObjectMissing`, and :class:`InvalidRecord` with the key.
        """
        try:
            record = model.from_json(self.objects.get(key, max_bytes=max_bytes))
        except InvalidRecord as error:
            raise type(error)(bounded_text(f"{key}: {error}")) from error
        if key_of(record) != key:
            raise InvalidRecord(bounded_text(f"{key}: the record's own numbers belong to {key_of(record)}"))
        return record
