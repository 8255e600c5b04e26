"""Evidence of measurements, and the baselines that later measurements reuse.

Invariant: a baseline is written before the evidence that names it. The validator keeps this order.
"""

from __future__ import annotations

from collections.abc import Iterator

from aurora_protocol.evidence_records import CachedBaseline, Evidence
from aurora_store.keys import Keys
from aurora_store.records import RecordStore


class EvidenceStore(RecordStore):
    """Evidence and cached baselines."""

    def put_evidence(self, evidence: Evidence) -> str:
        """Write the evidence of one attempt. Returns its key. Raises :class:`ObjectExists` when the attempt has one."""
        key = Keys.evidence(evidence.version, evidence.attempt)
        self.objects.create(key, evidence.to_json())
        return key

    def evidence(self, version: int) -> Evidence | None:
        """The evidence of the last attempt at measuring ``version``."""
        key = self._last_record_key(Keys.evidence_of(version))
        return Evidence.from_json(self.objects.get(key)) if key else None

    def evidence_of_all_attempts(self, version: int) -> Iterator[Evidence]:
        """The evidence of every attempt at measuring ``version``, first attempt first."""
        return (Evidence.from_json(self.objects.get(key)) for key in self._record_keys(Keys.evidence_of(version)))

    def put_baseline(self, baseline: CachedBaseline) -> str:
        """Write a baseline. Returns its key. Raises :class:`ObjectExists` when the attempt left one already."""
        key = Keys.baseline(baseline.lineage, baseline.version, baseline.attempt)
        self.objects.create(key, baseline.to_json())
        return key

    def baselines(self, lineage: int) -> Iterator[tuple[str, CachedBaseline]]:
        """Keys and records of a lineage's baselines, newest version first."""
        keys = reversed(self._record_keys(Keys.baselines(lineage)))
        return ((key, CachedBaseline.from_json(self.objects.get(key))) for key in keys)
