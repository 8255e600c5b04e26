"""Reports of erasures, and the step of one that is under way. Only the trainer writes them."""

from __future__ import annotations

from aurora_protocol.erasure_records import ErasureReport
from aurora_protocol.training_records import ErasureStep
from aurora_store.errors import ObjectMissing
from aurora_store.keys import Keys
from aurora_store.records import RecordStore


class ErasureStore(RecordStore):
    """The erasures of tags, which are named by their hashes."""

    def create_erasure_report(self, report: ErasureReport) -> None:
        """Write a report. Raises :class:`ObjectExists` when its number is taken."""
        self.objects.create(Keys.erasure(report.tag, report.number), report.to_json())

    def last_erasure_report(self, tag: str) -> ErasureReport | None:
        """The newest report about a tag. None: the tag was never erased."""
        numbers = self._sequence(Keys.erasures(tag))
        if not numbers:
            return None
        key = Keys.erasure(tag, numbers[-1])
        return self._read(ErasureReport, key, lambda record: Keys.erasure(record.tag, record.number))

    def put_erasure_step(self, step: ErasureStep) -> None:
        """Overwrite the step of an erasure that is under way."""
        self.objects.put(Keys.erasing(step.tag), step.to_json())

    def erasure_step(self, tag: str) -> ErasureStep | None:
        """The last step of an erasure that has no report yet."""
        try:
            return self._read(ErasureStep, Keys.erasing(tag), lambda record: Keys.erasing(record.tag))
        except ObjectMissing:
            return None

    def delete_erasure_step(self, tag: str) -> None:
        """Delete the step, once the report is written. A missing step is no error."""
        self.objects.delete(Keys.erasing(tag))
