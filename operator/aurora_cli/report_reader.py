"""Reads the records that a report is made of. Nothing is written, and no shard's data are read.

Invariants: the number of requests is bounded (see ``aurora_cli.report.stored_records``). A record that is damaged or
foreign, or that the store alone refuses, is left out and named, so that it hides no other. A store that does not answer
is an error: a page with half of the figures would look like the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from aurora_cli.errors import StoreFault
from aurora_cli.report.stored_records import (
    MAX_DECISIONS,
    MAX_EARLIER_ATTEMPTS,
    MAX_LEFT_OUT,
    MAX_SHARDS,
    MAX_VERSIONS,
    StoredRecords,
)
from aurora_protocol.draft_records import Channel, CheckpointManifest, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import StoredRecord
from aurora_protocol.training_records import ShardManifest, TrainerStatus
from aurora_store import Keys, ObjectStore
from aurora_store.errors import KeyUnusable, ObjectArchived, ObjectMissing, ObjectTooLarge, StoreError
from aurora_store.keys import MAX_ATTEMPT_GAP, in_sequence, is_shard_key, record_number
from aurora_store.records.record_store import MAX_RECORDS_LISTED

PARALLEL_READS: Final = 8
R = TypeVar("R", bound=StoredRecord)
T = TypeVar("T", int, str)


def read_records(objects: ObjectStore) -> StoredRecords:
    """The records of a report. Raises :class:`StoreFault` when the store does not answer."""
    try:
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            return _Reader(objects, pool).read()
    except StoreError as error:
        raise StoreFault(str(error)) from error


@dataclass
class _Reader:
    """One reading of a store."""

    objects: ObjectStore
    pool: ThreadPoolExecutor
    left_out: list[str] = field(default_factory=list)

    def read(self) -> StoredRecords:
        registrations = self._registrations()
        lineage = max((one.lineage for one in registrations), default=0)
        evidence, earlier = self._evidence()
        found = StoredRecords(
            registrations=registrations,
            checkpoints=self._checkpoints(registrations),
            evidence=evidence,
            earlier_evidence=earlier,
            channel=self._channel(),
            shards=self._shards(lineage) if lineage else (),
            trainer=next(iter(self._records(TrainerStatus, [Keys.TRAINER_STATUS])), None),
        )
        hidden = len(self.left_out) - MAX_LEFT_OUT
        more = (f"{hidden} more were left out.",) if hidden > 0 else ()
        return replace(found, left_out=(*self.left_out[:MAX_LEFT_OUT], *more))

    def _registrations(self) -> tuple[Registration, ...]:
        numbers = self._newest("versions", self._numbers(Keys.REGISTRY), MAX_VERSIONS)
        keys = {Keys.registration(number): number for number in numbers}
        return tuple(one for key, one in self._read(Registration, keys) if self._fits(key, one.version, keys))

    def _checkpoints(self, registrations: Sequence[Registration]) -> Mapping[int, CheckpointManifest]:
        keys = {f"{Keys.checkpoint(one.version, one.digest)}manifest.json": one.version for one in registrations}
        found = self._read(CheckpointManifest, keys)
        return {one.version: one for key, one in found if self._fits(key, one.version, keys)}

    def _evidence(self) -> tuple[tuple[Evidence, ...], tuple[Evidence, ...]]:
        """The last attempt at each version, and the attempts before it."""
        attempts: dict[int, list[int]] = {}
        for key in self.objects.list(Keys.EVIDENCE, limit=MAX_RECORDS_LISTED):
            folder, _, name = key.removeprefix(Keys.EVIDENCE).partition("/")
            version, attempt = record_number(f"{folder}.json"), record_number(name)
            if version is not None and attempt is not None:
                attempts.setdefault(version, []).append(attempt)
        versions = self._newest("measured versions", in_sequence(attempts), MAX_VERSIONS)
        listed = {version: in_sequence(attempts[version], max_gap=MAX_ATTEMPT_GAP) for version in versions}
        known = {version: found for version, found in listed.items() if found}
        last = [Keys.evidence(version, found[-1]) for version, found in known.items()]
        before = [Keys.evidence(version, attempt) for version, found in known.items() for attempt in found[:-1]]
        before = list(self._newest("earlier attempts at a measurement", before, MAX_EARLIER_ATTEMPTS))
        return self._attempts(last), self._attempts(before)

    def _attempts(self, keys: Sequence[str]) -> tuple[Evidence, ...]:
        own = {key: key for key in keys}
        found = self._read(Evidence, keys)
        return tuple(one for key, one in found if self._fits(key, Keys.evidence(one.version, one.attempt), own))

    def _channel(self) -> tuple[Channel, ...]:
        numbers = self._newest("records of the channel", self._numbers(Keys.CHANNEL), MAX_DECISIONS)
        keys = {Keys.channel(number): number for number in numbers}
        return tuple(one for key, one in self._read(Channel, keys) if self._fits(key, one.epoch, keys))

    def _shards(self, lineage: int) -> tuple[ShardManifest, ...]:
        keys = [key for key in self.objects.list(Keys.traces(lineage)) if is_shard_key(key)]
        if len(keys) > MAX_SHARDS:
            self.left_out.append(f"The report read {MAX_SHARDS} of {len(keys)} stored shards, evenly spread over time.")
            keys = [keys[number * len(keys) // MAX_SHARDS] for number in range(MAX_SHARDS)]
        return tuple(sorted(self._records(ShardManifest, keys), key=lambda one: one.created))

    def _numbers(self, prefix: str) -> list[int]:
        keys = self.objects.list(prefix, limit=MAX_RECORDS_LISTED)
        return in_sequence(number for key in keys if (number := record_number(key)) is not None)

    def _newest(self, what: str, numbers: Sequence[T], limit: int) -> Sequence[T]:
        if len(numbers) > limit:
            self.left_out.append(f"The report read the newest {limit} of {len(numbers)} {what}.")
        return numbers[-limit:]

    def _fits(self, key: str, own: T, wanted: Mapping[str, T]) -> bool:
        """Whether a record's own number, or its own key, is that of its key."""
        if own != wanted[key]:
            self.left_out.append(f"{key} was left out: the record's own numbers belong to another key.")
        return own == wanted[key]

    def _records(self, model: type[R], keys: Iterable[str]) -> Iterator[R]:
        return (record for _, record in self._read(model, keys))

    def _read(self, model: type[R], keys: Iterable[str]) -> Iterator[tuple[str, R]]:
        """Keys and readable records, in the order of ``keys``. An object that is gone by now is no fault."""

        def read(key: str) -> tuple[str, R | str | None]:
            try:
                return key, model.from_json(self.objects.get(key))
            except ObjectMissing:
                return key, None
            except (InvalidRecord, ObjectTooLarge, ObjectArchived, KeyUnusable) as error:
                return key, f"{key} was left out: {error}."

        for key, found in self.pool.map(read, keys):
            if isinstance(found, str):
                self.left_out.append(found)
            elif found is not None:
                yield key, found
