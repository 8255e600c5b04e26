"""Evidence of measurements, and the baselines that later measurements reuse.

Invariants: a baseline is written before the evidence that names it. The validator keeps this order. Records without the
signature of a validator are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import CachedBaseline, Evidence
from aurora_protocol.signatures import KeyName
from aurora_store.errors import ObjectTooLarge
from aurora_store.keys import MAX_ATTEMPT_GAP, Keys
from aurora_store.records.record_store import RecordStore

MAX_BASELINES_TRIED = 64
"""How many of the newest baselines are read at most, readable or not."""


class EvidenceStore(RecordStore):
    """Evidence and cached baselines."""

    def put_evidence(self, evidence: Evidence) -> str:
        """Write the evidence of one attempt. Returns its key. Raises :class:`ObjectExists` when the attempt has one."""
        key = Keys.evidence(evidence.version, evidence.attempt)
        self._create_signed(key, evidence, KeyName.EVIDENCE)
        return key

    def evidence(self, version: int) -> Evidence | None:
        """The evidence of the last attempt at measuring ``version``, to be shown to people. It is not verified."""
        attempts = self._sequence(Keys.evidence_of(version), max_gap=MAX_ATTEMPT_GAP)
        return self._evidence(version, attempts[-1], signed_with=None) if attempts else None

    def evidence_of_all_attempts(self, version: int) -> Iterator[Evidence]:
        """The readable evidence of every attempt at measuring ``version``, first attempt first."""
        for attempt in self._sequence(Keys.evidence_of(version), max_gap=MAX_ATTEMPT_GAP):
            try:
                yield self._evidence(version, attempt)
            except (InvalidRecord, ObjectTooLarge) as error:
                self._leave_out(Keys.evidence(version, attempt), str(error))

    def _evidence(self, version: int, attempt: int, *, signed_with: KeyName | None = KeyName.EVIDENCE) -> Evidence:
        key = Keys.evidence(version, attempt)
        return self._read(Evidence, key, lambda r: Keys.evidence(r.version, r.attempt), signed_with=signed_with)

    def put_baseline(self, baseline: CachedBaseline) -> str:
        """Write a baseline. Returns its key. Raises :class:`ObjectExists` when the attempt left one already."""
        key = Keys.baseline(baseline.lineage, baseline.version, baseline.attempt)
        self._create_signed(key, baseline, KeyName.EVIDENCE)
        return key

    def _baseline(self, key: str) -> CachedBaseline:
        return self._read(
            CachedBaseline,
            key,
            lambda record: Keys.baseline(record.lineage, record.version, record.attempt),
            signed_with=KeyName.EVIDENCE,
        )

    def baselines(self, lineage: int) -> Iterator[tuple[str, CachedBaseline]]:
        """Keys and records of a lineage's readable baselines, newest version first."""
        for key in self._json_keys(Keys.baselines(lineage))[: -MAX_BASELINES_TRIED - 1 : -1]:
            try:
                yield key, self._baseline(key)
            except (InvalidRecord, ObjectTooLarge) as error:
                self._leave_out(key, str(error))
