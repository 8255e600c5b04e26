"""Base of the classes that read and write the records of one speculator: the one reader for what the store holds.

Invariants: an object whose name is not a record's, or whose number is out of sequence, is logged and left out. So it
stops nobody from reading the others. A record is returned only when its own numbers belong to its key. A writer without
the key of a record writes it unsigned, and then no reader that verifies signatures believes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.record import StoredRecord
from aurora_protocol.signatures import KeyName, SigningKeys, signed, verified
from aurora_store.errors import bounded_text
from aurora_store.keys import MAX_NUMBER_GAP, in_sequence, number_of
from aurora_store.objects import MAX_RECORD_BYTES, ObjectStore

MAX_RECORDS_LISTED = 100_000
"""Most objects of one listing of records. A speculator makes one record for each version or decision."""
MAX_FOREIGN_KEYS = 100
"""How many objects that are no records are logged at most."""
R = TypeVar("R", bound=StoredRecord)
log = logging.getLogger(__name__)


class RecordStore:
    """Records are the ``.json`` objects. Numbers in keys are zero-padded, so key order is number order."""

    def __init__(self, objects: ObjectStore, keys: SigningKeys | None = None) -> None:
        """``keys``: those that this process signs and verifies records with."""
        self.objects = objects
        self._signing_keys: SigningKeys = {} if keys is None else keys
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

    def _sequence(self, prefix: str, *, from_start: bool = True, max_gap: int = MAX_NUMBER_GAP) -> list[int]:
        """The numbers of :meth:`_numbers` up to the first that is out of sequence.

        Args:
            from_start: whether the sequence begins with the first number. False where old records are deleted: the
                sequence then begins with the lowest number that is left.
            max_gap: most numbers that the sequence may skip.
        """
        numbers = self._numbers(prefix)
        sequence = in_sequence(numbers, 0 if from_start else min(numbers, default=0), max_gap=max_gap)
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

    def _create_signed(self, key: str, record: StoredRecord, name: KeyName) -> None:
        """Write ``record`` at ``key``, signed with the key ``name`` if this process holds it."""
        secret, data = self._signing_keys.get(name), record.to_json()
        self.objects.create(key, data if secret is None else signed(data, self._place(key), secret))

    def _place(self, key: str) -> str:
        """The place in the store that a signature covers."""
        return f"{self.objects.config.root}/{key}"

    def _verified(self, data: bytes, key: str, name: KeyName) -> bytes:
        """The record in ``data`` without its signatures. Raises :class:`UnsignedRecord`."""
        secret = self._signing_keys.get(name)
        if secret is None:
            raise UnsignedRecord(f"this process has no {name.value} to verify it with")
        return verified(data, self._place(key), secret)

    def _read(
        self,
        model: type[R],
        key: str,
        key_of: Callable[[R], str],
        *,
        max_bytes: int = MAX_RECORD_BYTES,
        signed_with: KeyName | None = None,
    ) -> R:
        """The record at ``key``. ``key_of`` returns the key to which a record's own numbers belong.

        Args:
            signed_with: the key that the record must be signed with. None: a record of this kind is not signed.

        Raises :class:`ObjectMissing`, and :class:`InvalidRecord` with the key.
        """
        try:
            data = self.objects.get(key, max_bytes=max_bytes)
            record = model.from_json(data if signed_with is None else self._verified(data, key, signed_with))
        except InvalidRecord as error:
            raise type(error)(bounded_text(f"{key}: {error}")) from error
        if key_of(record) != key:
            raise InvalidRecord(bounded_text(f"{key}: the record's own numbers belong to {key_of(record)}"))
        return record
