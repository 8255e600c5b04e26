"""Reports of erasures, and the step of one that is under way. Only the trainer writes them.

Invariant: a record that cannot be read is logged and treated as missing, so that a foreign record stops no trainer.
"""

from __future__ import annotations

import logging

from aurora_protocol.erasure_records import ErasureReport
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import ErasureStep
from aurora_store.errors import DigestMismatch, ObjectMissing
from aurora_store.keys import Keys
from aurora_store.records.record_store import RecordStore

log = logging.getLogger(__name__)


class ErasureStore(RecordStore):
    """The erasures of tags, which are named by their hashes."""

    def create_erasure_report(self, report: ErasureReport) -> None:
        """Write a report. Raises :class:`ObjectExists` when its number is taken."""
        self.objects.create(Keys.erasure(report.tag, report.number), report.to_json())

    def erasure_report_numbers(self, tag: str) -> list[int]:
        """The numbers of the reports about a tag, readable or not, oldest first."""
        return self._sequence(Keys.erasures(tag))

    def last_erasure_report(self, tag: str) -> ErasureReport | None:
        """The newest readable report about a tag. None: no report says that the tag was erased."""
        for number in reversed(self.erasure_report_numbers(tag)):
            key = Keys.erasure(tag, number)
            try:
                return self._read(ErasureReport, key, lambda record: Keys.erasure(record.tag, record.number))
            except (InvalidRecord, DigestMismatch) as error:
                log.error("a report about the tag %s cannot be read: %s", tag, error)  # noqa: TRY400
        return None

    def put_erasure_step(self, step: ErasureStep) -> None:
        """Overwrite the step of an erasure that is under way."""
        self.objects.put(Keys.erasing(step.tag), step.to_json())

    def erasure_step(self, tag: str) -> ErasureStep | None:
        """The last step of an erasure that has no report yet."""
        try:
            step = self._read(ErasureStep, Keys.erasing(tag), lambda record: Keys.erasing(record.tag))
        except ObjectMissing:
            return None
        except (InvalidRecord, DigestMismatch) as error:
            log.error("the last step of an erasure cannot be read: %s", error)  # noqa: TRY400
            return None
        shard = step.manifest
        if step.shard != f"{Keys.shard(shard.lineage, shard.pod, shard.boot, shard.seq, shard.created)}.json":
            log.error("%s names another shard than its manifest", Keys.erasing(tag))
            return None
        return step

    def delete_erasure_step(self, tag: str) -> None:
        """Delete the step, once the report is written. A missing step is no error."""
        self.objects.delete(Keys.erasing(tag))
