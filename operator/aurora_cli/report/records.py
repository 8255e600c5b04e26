"""Reads the stored records that a report is made of. Nothing is written, and no shard's data are read.

Invariants: the number of requests is bounded. A record that is damaged, that the store alone refuses, or whose figures
cannot be true is left out and named, so that it hides no other. A store that does not answer is an error: a page with
half of the figures would look like the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from aurora_cli.errors import StoreFault
from aurora_protocol.draft_records import Channel, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import StoredRecord
from aurora_protocol.training_records import ShardManifest
from aurora_store import Keys, ObjectStore
from aurora_store.errors import ObjectMissing, ObjectRefused, ObjectTooLarge, StoreError
from aurora_store.keys import MAX_ATTEMPT_GAP, MAX_NUMBER_GAP, in_sequence, is_shard_key, record_numbers
from aurora_store.registry import MAX_RECORDS_LISTED

MAX_VERSIONS: Final = 60
"""Newest versions of which registration and evidence are read."""
MAX_DECISIONS: Final = 200
"""Newest records of the channel that are read."""
MAX_SHARDS: Final = 240
"""Manifests of shards that are read, evenly spread over all that are stored."""
PARALLEL_READS: Final = 8
MAX_TOKENS: Final = 10**15
MAX_LENGTH: Final = 1000
"""Most answer tokens of a verify round."""
MAX_RATIO: Final = 1000.0
R = TypeVar("R", bound=StoredRecord)


@dataclass(frozen=True)
class Records:
    """What the store says about one speculator."""

    registrations: Sequence[Registration] = ()
    """By version."""
    evidence: Sequence[Evidence] = ()
    """The last attempt at measuring each version, by version."""
    channel: Sequence[Channel] = ()
    """By epoch."""
    shards: Sequence[ShardManifest] = ()
    """By the time at which they were written."""
    left_out: Sequence[str] = ()
    """What was not read, and why: one sentence each."""


def read_records(objects: ObjectStore) -> Records:
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

    def read(self) -> Records:
        versions = self._newest("versions", self._numbers(Keys.REGISTRY), MAX_VERSIONS)
        registrations = self._records(Registration, map(Keys.registration, versions), _is_true_registration)
        evidence = self._records(Evidence, filter(None, map(self._last_attempt, versions)), is_true_evidence)
        epochs = self._newest("records of the channel", self._numbers(Keys.CHANNEL), MAX_DECISIONS)
        channel = self._records(Channel, map(Keys.channel, epochs), lambda one: _is_time(one.created))
        lineage = max((one.lineage for one in registrations), default=0)
        shards = self._records(ShardManifest, self._shards(lineage) if lineage else (), _is_true_shard)
        shards.sort(key=lambda one: one.created)
        return Records(registrations, evidence, channel, shards, self.left_out)

    def _last_attempt(self, version: int) -> str | None:
        attempts = self._numbers(Keys.evidence_of(version), MAX_ATTEMPT_GAP)
        return Keys.evidence(version, attempts[-1]) if attempts else None

    def _shards(self, lineage: int) -> Sequence[str]:
        keys = [key for key in self.objects.list(Keys.traces(lineage)) if is_shard_key(key)]
        if len(keys) <= MAX_SHARDS:
            return keys
        self.left_out.append(f"The report read {MAX_SHARDS} of {len(keys)} stored shards, evenly spread over time.")
        return [keys[number * len(keys) // MAX_SHARDS] for number in range(MAX_SHARDS)]

    def _numbers(self, prefix: str, max_gap: int = MAX_NUMBER_GAP) -> list[int]:
        keys = self.objects.list(prefix, limit=MAX_RECORDS_LISTED)
        return in_sequence(record_numbers(keys, prefix), max_gap=max_gap)

    def _newest(self, what: str, numbers: Sequence[int], limit: int) -> Sequence[int]:
        if len(numbers) > limit:
            self.left_out.append(f"The report read the newest {limit} of {len(numbers)} {what}.")
        return numbers[-limit:]

    def _records(self, model: type[R], keys: Iterable[str], is_true: Callable[[R], bool]) -> list[R]:
        """Readable records, in the order of ``keys``. An object that is gone by now is no fault."""

        def read(key: str) -> R | str | None:
            try:
                record = model.from_json(self.objects.get(key))
            except ObjectMissing:
                return None
            except (InvalidRecord, ObjectTooLarge, ObjectRefused) as error:
                return f"{key} was left out: {error}."
            return record if is_true(record) else f"{key} was left out: its figures cannot be true."

        found = list(self.pool.map(read, keys))
        self.left_out += [one for one in found if isinstance(one, str)]
        return [one for one in found if one is not None and not isinstance(one, str)]


def _is_time(moment: datetime) -> bool:
    return 2020 <= moment.year <= 2100


def _is_true_registration(one: Registration) -> bool:
    length = one.held_out_acceptance_length
    return _is_time(one.created) and one.trained_tokens <= MAX_TOKENS and (length is None or 1 <= length <= MAX_LENGTH)


def is_true_evidence(one: Evidence) -> bool:
    """Whether the times and the ratios of a measurement can be drawn."""
    numbers = [number for each in one.verdict.ratios for number in (each.low, each.estimate, each.high)]
    return _is_time(one.started) and _is_time(one.finished) and all(0 <= each <= MAX_RATIO for each in numbers)


def _is_true_shard(one: ShardManifest) -> bool:
    return _is_time(one.created) and one.rounds <= one.answer_tokens <= MAX_LENGTH * one.rounds <= MAX_TOKENS
