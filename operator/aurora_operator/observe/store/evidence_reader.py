"""Reads one speculator's evidence: the records of its measurements.

Invariants:

- Each record is verified when it is read (``signed_records``), and its verdict is the operator's own
  (``evidence_check``). A change of the bars reads the record again.
- The attempts of a version are listed once. Evidence of the measurement under way is then looked for by its key.
- Evidence of a version older than the active one promotes nothing. It is read for the previous version, whose figures
  the status shows, and for a version that the status, a pin or an annotation names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from aurora_operator.observe.store.evidence_check import (
    MAX_EXAMINED,
    NO_EXAMINATION,
    Examination,
    Examined,
    ExaminedEvidence,
)
from aurora_operator.observe.store.record_names import in_sequence_keys, naming, require_own_key
from aurora_operator.observe.store.signed_records import RecordKeys, believed_evidence
from aurora_operator.observe.store.store_schedule import StoreNeeds
from aurora_protocol.draft_records import INITIAL_VERSION, Channel
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.gate import GatePolicy
from aurora_store import Keys, ObjectStore
from aurora_store.errors import ObjectMissing
from aurora_store.keys import MAX_ATTEMPT_GAP

MAX_ATTEMPTS_LISTED: Final = 1000
"""Most measurements of one version. A page of a listing has as many keys."""


class EvidenceReader:
    """The evidence of one speculator. Not thread-safe."""

    def __init__(self, objects: ObjectStore, keys: RecordKeys | None, examined: ExaminedEvidence | None) -> None:
        """``examined`` is what earlier readers of this store examined. The reader adds to it."""
        self._objects, self._keys = objects, keys
        self._examined: ExaminedEvidence = {} if examined is None else examined
        """An abandoned read may still add to it in another thread, so each change is one operation of the dict."""
        self._attempts: dict[int, tuple[str, ...]] = {}
        """Version -> the keys of its evidence."""

    def forget_listings(self) -> None:
        """List the attempts of every version again."""
        self._attempts.clear()

    def forget(self) -> None:
        """Read everything again."""
        self._attempts.clear()
        self._examined.clear()

    def read(self, registered: Iterable[int], needs: StoreNeeds, channel: Channel | None) -> tuple[Evidence, ...]:
        """The evidence of the versions among ``registered`` that may matter, and nothing else is kept.

        Raises :class:`InvalidRecord` and :class:`StoreError`.
        """
        active = None if channel is None else channel.active
        least = INITIAL_VERSION if active is None else active
        asked = needs.versions if channel is None else {*needs.versions, channel.previous}
        versions = sorted(v for v in registered if v != INITIAL_VERSION and (v >= least or v in asked))
        self._attempts = {version: keys for version, keys in self._attempts.items() if version in versions}
        self._list_attempts([version for version in versions if version not in self._attempts])
        found: list[Evidence] = []
        for version in versions:
            examination = Examination.of(version, needs.policy, active=active, pin=needs.pin)
            if needs.measurement is not None and needs.measurement[0] == version:
                self._find(*needs.measurement, examination, needs.policy)
            left, newest_first = MAX_EXAMINED, list[Evidence]()
            for key in reversed(self._attempts[version]):
                examined = self._at(key, examination if left > 0 else NO_EXAMINATION, needs.policy)
                left -= examined.said_pass
                newest_first.append(examined.evidence)
            found += reversed(newest_first)
        self._keep({Keys.evidence(one.version, one.attempt) for one in found})
        return tuple(found)

    def _list_attempts(self, versions: Sequence[int]) -> None:
        """List the evidence of ``versions``, which ascend.

        One request lists all of them if the keys fit a page. A restarted operator does this for every speculator.
        """
        if len(versions) > 1:
            listed = self._objects.list(
                Keys.EVIDENCE, after=Keys.evidence_of(versions[0]), limit=2 * MAX_ATTEMPTS_LISTED
            )
            keys = tuple(islice(listed, MAX_ATTEMPTS_LISTED))
            if len(keys) < MAX_ATTEMPTS_LISTED:
                for version in versions:
                    own = (key for key in keys if key.startswith(Keys.evidence_of(version)))
                    self._attempts[version] = in_sequence_keys(own, max_gap=MAX_ATTEMPT_GAP)
                return
        for version in versions:
            listed = self._objects.list(Keys.evidence_of(version), limit=MAX_ATTEMPTS_LISTED)
            self._attempts[version] = in_sequence_keys(listed, max_gap=MAX_ATTEMPT_GAP)

    def _find(self, version: int, attempt: int, examination: Examination, policy: GatePolicy) -> None:
        key = Keys.evidence(version, attempt)
        if key in self._attempts[version]:
            return
        try:
            self._at(key, examination, policy)
        except ObjectMissing:
            return
        self._attempts[version] = tuple(sorted({*self._attempts[version], key}))

    def _at(self, key: str, examination: Examination, policy: GatePolicy) -> Examined:
        known = self._examined.get(key)
        if known is not None and known.answers(examination, policy):
            return known
        data = self._objects.get(key)
        with naming(key):
            read = believed_evidence(data, key, self._objects.config.root, self._keys)
        require_own_key(key, Keys.evidence(read.version, read.attempt))
        examined = Examined.of(read, examination, policy, known)
        self._examined[key] = examined
        return examined

    def _keep(self, keys: set[str]) -> None:
        """Forget all other evidence."""
        for key in list(self._examined):
            if key not in keys:
                self._examined.pop(key, None)
