"""Checks a speculator's objects: every record can be read and belongs to its key, and the data that it names are there.

The versions that the channel's newest record names as the active and the previous one are registered.

Why not more: signatures need the operator's key. Digests of drafts are checked on request, because drafts are large.
Manifests of shards are not read, and their data are looked for by name: a store may hold thousands, and the trainer
skips a damaged one.

Invariants: nothing is written. An object that is deleted while the check runs is no fault.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from aurora_protocol.draft_records import Channel, ExpiredDraft, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import StoredRecord
from aurora_protocol.training_records import TrainerState, TrainerStatus
from aurora_store import Keys, ObjectStore, Registry
from aurora_store.errors import DigestMismatch, DraftExpired, ObjectMissing, ObjectRefused
from aurora_store.objects import MAX_RECORD_BYTES
from aurora_store.registry import MAX_STATE_RECORD_BYTES, key_of

R = TypeVar("R", bound=StoredRecord)
_RECORDS: Final[Mapping[str, type[StoredRecord]]] = {
    Keys.LINEAGE: Lineage,
    Keys.EVIDENCE: Evidence,
    Keys.CHANNEL: Channel,
    Keys.EXPIRED: ExpiredDraft,
}
"""Records that name no data."""
KNOWN: Final = tuple(value for name, value in vars(Keys).items() if name.isupper() and isinstance(value, str))
"""Beginnings of all keys that parts of Aurora write."""
_UNREADABLE: Final = (InvalidRecord, DigestMismatch, ObjectRefused)
"""Errors about one object, not about the whole store."""


@dataclass
class Verification:
    """One check of all objects below a root. ``faults`` is empty when the store is whole."""

    objects: ObjectStore
    digests: bool = False
    """Whether to download every draft and compare its digests."""
    checked: Counter[str] = field(default_factory=Counter, init=False)
    """Objects by the first part of their key."""
    faults: list[tuple[str, str]] = field(default_factory=list, init=False)
    """Keys, each with what is wrong: damaged, missing, or refused by the store."""
    _sizes: dict[str, int] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Check all objects. Raises :class:`StoreError` when the store does not answer."""
        self._sizes = {one.key: one.size_bytes for one in self.objects.list_objects("")}
        for key in self._sizes:
            self.checked[key.partition("/")[0]] += 1
            if not key.startswith(KNOWN):
                self._fault(key, "no part of Aurora writes such an object; delete it, and find out who wrote it")
        channel: Channel | None = None
        for beginning, model in _RECORDS.items():
            for key in self._records(beginning):
                record = self._read(model, key)
                if isinstance(record, Channel) and (channel is None or record.epoch > channel.epoch):
                    channel = record
        if channel is not None:
            self._check_named_versions(channel)
        serving = () if channel is None else (channel.active, channel.previous)
        for key in self._records(Keys.REGISTRY):
            self._check_version(key, serving)
        for key in self._records(Keys.TRAINER_STATE):
            state = self._read(TrainerState, key, MAX_STATE_RECORD_BYTES)
            if state is not None:
                folder = f"{key.removesuffix('.json')}/"
                self._require(folder + state.file.name, state.file.size, key)
        if Keys.TRAINER_STATUS in self._sizes:
            self._read(TrainerStatus, Keys.TRAINER_STATUS)
        for key in self._records(Keys.TRACES):
            if f"{key.removesuffix('.json')}.safetensors" not in self._sizes:
                self._fault(key, "the shard that it names is missing")

    def _records(self, beginning: str) -> Iterator[str]:
        return (key for key in self._sizes if key.startswith(beginning) and key.endswith(".json"))

    def _check_named_versions(self, channel: Channel) -> None:
        """The versions to which pods may have to return are registered."""
        for name, version in (("active", channel.active), ("previous", channel.previous)):
            if version is not None and Keys.registration(version) not in self._sizes:
                named = f"{Keys.channel(channel.epoch)} names it as the {name} version"
                self._fault(Keys.registration(version), f"it is missing, and {named}; put it back from a backup")

    def _check_version(self, key: str, serving: tuple[int | None, ...]) -> None:
        """An expired draft may be gone, unless pods may have to return to it."""
        registration = self._read(Registration, key)
        if registration is None:
            return
        registry = Registry(self.objects)
        try:
            manifest = registry.checkpoint(registration)
            for file in manifest.files:
                self._require(registration.checkpoint + file.name, file.size, key)
            if self.digests:
                with tempfile.TemporaryDirectory() as folder:
                    registry.fetch_checkpoint(registration, Path(folder))
        except (*_UNREADABLE, ObjectMissing) as error:
            if not isinstance(error, DraftExpired) or registration.version in serving:
                self._fault(key, f"its draft: {error}")

    def _read(self, model: type[R], key: str, max_bytes: int = MAX_RECORD_BYTES) -> R | None:
        """The record at ``key``. None for a fault, and for a record that was deleted meanwhile."""
        try:
            record = model.from_json(self.objects.get(key, max_bytes=max_bytes))
        except ObjectMissing:
            return None
        except _UNREADABLE as error:
            self._fault(key, str(error))
            return None
        if key_of(record) != key:
            self._fault(key, f"the record's own numbers belong to {key_of(record)}; find out who wrote it")
            return None
        return record

    def _require(self, key: str, size_bytes: int, record: str) -> None:
        found = self._sizes.get(key)
        if found is None:
            self._fault(record, f"it names {key}, which is missing")
        elif found != size_bytes:
            self._fault(record, f"it names {key} with {size_bytes} bytes, and the store holds {found}")

    def _fault(self, key: str, message: str) -> None:
        self.faults.append((key, message))
