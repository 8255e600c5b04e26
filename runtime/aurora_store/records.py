"""Base of the classes that read and write the records of one speculator."""

from __future__ import annotations

from aurora_store.objects import ObjectStore

MAX_RECORDS_LISTED = 100_000
"""Most objects of one listing of records. A speculator makes one record for each version or decision."""


class RecordStore:
    """Records are the ``.json`` objects. Numbers in keys are zero-padded, so key order is number order."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def _record_keys(self, prefix: str) -> list[str]:
        """Keys of the records below ``prefix``, in number order."""
        return sorted(key for key in self.objects.list(prefix, limit=MAX_RECORDS_LISTED) if key.endswith(".json"))

    def _last_record_key(self, prefix: str) -> str | None:
        """Key of the record with the highest number below ``prefix``."""
        return max(
            (key for key in self.objects.list(prefix, limit=MAX_RECORDS_LISTED) if key.endswith(".json")), default=None
        )
