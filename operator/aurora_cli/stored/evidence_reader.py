"""Reads the evidence of one measurement as it is stored, and as a record.

The record is not verified: see ``aurora_cli.tables.evidence_table``.
"""

from __future__ import annotations

from dataclasses import dataclass

from aurora_cli.errors import StoreFault
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_store import Keys, ObjectStore
from aurora_store.errors import ObjectMissing, StoreError
from aurora_store.keys import MAX_ATTEMPT_GAP, in_sequence, record_number
from aurora_store.records.record_store import MAX_RECORDS_LISTED


@dataclass(frozen=True)
class StoredEvidence:
    """The bytes of a record, and what they say."""

    key: str
    data: bytes
    record: Evidence


def read_evidence(objects: ObjectStore, name: str, version: int, attempt: int | None) -> StoredEvidence:
    """The evidence of one attempt at measuring ``version``; without ``attempt`` of the last.

    Raises :class:`StoreFault` when there is none, when the record cannot be read, or when the store does not answer.
    """
    try:
        attempts = _attempts(objects, version)
        if not attempts:
            raise StoreFault(f"{name} has no evidence of version {version}: {_why_none(version)}")
        if attempt is not None and attempt not in attempts:
            raise StoreFault(f"{name} has evidence of version {version} for attempt {', '.join(map(str, attempts))}")
        key = Keys.evidence(version, attempts[-1] if attempt is None else attempt)
        data = objects.get(key)
        return StoredEvidence(key, data, Evidence.from_json(data))
    except ObjectMissing as error:
        raise StoreFault(f"{error}; it was deleted a moment ago") from error
    except StoreError as error:
        raise StoreFault(str(error)) from error
    except InvalidRecord as error:
        raise StoreFault(f"{Keys.evidence_of(version)}: {error}") from error


def _attempts(objects: ObjectStore, version: int) -> list[int]:
    keys = objects.list(Keys.evidence_of(version), limit=MAX_RECORDS_LISTED)
    attempts = (number for key in keys if (number := record_number(key)) is not None)
    return in_sequence(attempts, max_gap=MAX_ATTEMPT_GAP)


def _why_none(version: int) -> str:
    return "the initial draft is not measured" if version == 0 else "it was not measured yet, or never registered"
