"""The records of one speculator as its pods see them: those of :mod:`aurora_store.registry`, shards and trainer states.

Why here: only pods read and write shards and trainer states, search the registry, and look for a signed record of the
channel. The invariants are those of that module.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from aurora_protocol.draft_records import Channel, ExpiredDraft, Registration
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.signatures import KeyName
from aurora_protocol.training_records import ShardManifest, TrainerState
from aurora_store import Keys, Registry
from aurora_store.errors import ObjectExists, ObjectMissing, ObjectTooLarge, StoreError, bounded_text
from aurora_store.keys import MAX_ATTEMPT_GAP, is_shard_key, shard_data_key, trainer_state_epoch
from aurora_store.registry import MAX_RECORDS_LISTED, MAX_STATE_RECORD_BYTES, key_of

log = logging.getLogger(__name__)

MAX_SHARD_BYTES = 4 << 30
"""Largest shard that is read. A shard has 16384 positions by default, about 400 MB for a target of 4096 dimensions."""
KEPT_TRAINER_STATES = 2
MAX_UNSIGNED_TRIED = 64
"""How many records of the channel are tried at most to find a signed one."""


@dataclass(frozen=True)
class ShardListing:
    """All shards of a lineage, by the keys of their manifests, oldest hour first."""

    data_bytes: dict[str, int] = field(default_factory=dict)
    """Size of the data of each shard that has a manifest."""
    orphans: dict[str, datetime] = field(default_factory=dict)
    """When the data of each shard without a manifest was written."""
    written: dict[str, datetime] = field(default_factory=dict)
    """When the store got the later of each shard's two objects."""


class PodRegistry(Registry):
    """Reads and writes the records of one speculator, as a pod of it does.

    An *orphan* is a shard's data without a manifest: an upload that is under way, or one that never finished. A shard's
    data is written before its manifest, and the manifest is deleted before the data. So a manifest names missing data
    for a moment at most, when the trainer deletes an orphan just while its upload is tried again. Only an erasure
    replaces what is stored.

    The trainer's states are create-once, and the newest are kept. A state's record is deleted before its data, so a
    record never names missing data.
    """

    # shards ----------------------------------------------------------------------------------------------------------

    def put_shard(self, manifest: ShardManifest, data: Path) -> str:
        """Write a shard from the file ``data``, data first. Returns the manifest's key.

        Pod, boot and seq make the key unique, so an object that exists is from an attempt whose answer was lost. That
        object is not replaced, because a tag may have been erased from the shard since then. The trainer may
        also delete the data as an orphan before the manifest is written. So data that existed are written again if they
        are gone.
        """
        key = key_of(manifest)
        is_new = self._create_file(shard_data_key(key), data)
        with contextlib.suppress(ObjectExists):
            self.objects.create(key, manifest.to_json())
        if not is_new:
            self._create_file(shard_data_key(key), data)
        return key

    def _create_file(self, key: str, data: Path) -> bool:
        """Write the file at ``key``, unless the key is taken. Returns whether the file was written."""
        try:
            self.objects.create_file(key, data)
        except ObjectExists:
            return False
        return True

    def shard(self, manifest_key: str) -> tuple[ShardManifest, bytes]:
        """A shard's manifest and its verified data.

        Raises :class:`ObjectMissing`, :class:`InvalidRecord` and :class:`DigestMismatch`.
        """
        data_key, manifest = shard_data_key(manifest_key), self.shard_manifest(manifest_key)
        if manifest.file.name != data_key.rsplit("/", 1)[1]:
            raise InvalidRecord(f"{bounded_text(manifest_key)}: names data that are not its own")
        if manifest.file.size > MAX_SHARD_BYTES:
            raise InvalidRecord(f"{bounded_text(manifest_key)}: names more than {MAX_SHARD_BYTES} bytes")
        return manifest, self.objects.get(data_key, manifest.file.sha256, max_bytes=manifest.file.size)

    def shard_manifest(self, manifest_key: str) -> ShardManifest:
        """A shard's manifest. Raises :class:`ObjectMissing` and :class:`InvalidRecord`."""
        return self._read(ShardManifest, manifest_key)

    def unverified_shard(self, manifest_key: str) -> bytes:
        """A shard's data, whatever its manifest says. Raises :class:`ObjectMissing` and :class:`ObjectTooLarge`."""
        return self.objects.get(shard_data_key(manifest_key), max_bytes=MAX_SHARD_BYTES)

    def replace_shard(self, manifest_key: str, manifest: ShardManifest, data: bytes) -> None:
        """Give a shard other data under the same key: no manifest, then the new data, then the new manifest.

        An agent that tries its upload again in between writes the former manifest, which names a digest that the data
        do not have. So the new manifest replaces what is there. Safe to repeat from the start.
        """
        self.objects.delete(manifest_key)
        self.objects.put(shard_data_key(manifest_key), data)
        self.objects.put(manifest_key, manifest.to_json())

    def shard_range(self, manifest_key: str, first: int, size: int) -> bytes:
        """``size`` bytes of a shard's data from byte ``first``, fewer at the end of the data. Not verified.

        Raises :class:`ObjectMissing`.
        """
        return self.objects.get_range(shard_data_key(manifest_key), first, size)

    def delete_shard(self, manifest_key: str) -> None:
        """Delete a shard, its manifest first. Safe to repeat."""
        self.objects.delete(manifest_key)
        self.objects.delete(shard_data_key(manifest_key))

    def newest_shards(self, lineage: int, limit: int) -> list[str]:
        """Keys of the ``limit`` manifests written last, newest first.

        The order is by the store's clock. The keys do not show the order, because each engine start counts from 0.
        """
        objects = self.objects.list_objects(Keys.traces(lineage))
        manifests = ((item.modified, item.key) for item in objects if is_shard_key(item.key))
        return [key for _, key in heapq.nlargest(limit, manifests)]

    def list_shards(self, lineage: int) -> ShardListing:
        """Every shard of a lineage with its size, and every orphan."""
        objects = {item.key: item for item in self.objects.list_objects(Keys.traces(lineage))}
        listing = ShardListing()
        for key, item in objects.items():
            stem, _, extension = key.rpartition(".")
            if not is_shard_key(f"{stem}.json"):
                continue  # no agent wrote this object, so the trainer neither reads nor deletes it
            if extension == "json":
                data = objects.get(f"{stem}.safetensors")
                listing.data_bytes[key] = data.size_bytes if data else 0
                listing.written[key] = max(item.modified, data.modified) if data else item.modified
            elif f"{stem}.json" not in objects:
                listing.orphans[f"{stem}.json"] = item.modified
        return listing

    def orphan_written_at(self, manifest_key: str) -> datetime | None:
        """When the data of an orphan was written. None when the shard has a manifest, or has no data."""
        prefix = manifest_key.removesuffix("json")
        modified = {item.key: item.modified for item in self.objects.list_objects(prefix)}
        return None if manifest_key in modified else modified.get(shard_data_key(manifest_key))

    # drafts ----------------------------------------------------------------------------------------------------------

    def registrations(self) -> Iterator[Registration]:
        """The readable registrations, newest version first.

        A version whose registration cannot be read is left out.
        """
        for version in reversed(self._sequence(Keys.REGISTRY)):
            try:
                yield self.registration(version)
            except (InvalidRecord, ObjectMissing, ObjectTooLarge) as error:
                log.warning("left out: %s", error)

    def last_version(self) -> int | None:
        """The highest version of :meth:`registrations`."""
        return next((registration.version for registration in self.registrations()), None)

    def signed_channel(self) -> Channel | None:
        """The channel's newest record that the operator signed. None: the channel is empty.

        Records after it are logged and left out.

        Raises :class:`UnsignedRecord` with the newest record's key when none of the newest
        :data:`MAX_UNSIGNED_TRIED` records is signed.
        """
        newest: UnsignedRecord | None = None
        for epoch in self._sequence(Keys.CHANNEL)[: -MAX_UNSIGNED_TRIED - 1 : -1]:
            try:
                return self._read(Channel, Keys.channel(epoch), signed_with=KeyName.CHANNEL)
            except UnsignedRecord as error:
                newest = newest or error
            except (InvalidRecord, ObjectTooLarge) as error:
                newest = newest or UnsignedRecord(str(error))
            log.warning("left out: %s", newest)
        if newest is not None:
            raise newest
        return None

    def registered_versions(self) -> frozenset[int]:
        """All versions that were registered, readable or not."""
        return frozenset(self._sequence(Keys.REGISTRY))

    def measured_versions(self) -> frozenset[int]:
        """The versions that have evidence."""
        folders = {key.split("/")[1] for key in self.objects.list(Keys.EVIDENCE, limit=MAX_RECORDS_LISTED)}
        return frozenset(int(folder) for folder in folders if folder.isdecimal())

    def has_passed(self, version: int) -> bool:
        """Whether a validator's verdict let ``version`` pass. Signatures are not verified.

        Raises :class:`InvalidRecord` when evidence cannot be read.
        """
        attempts = self._sequence(Keys.evidence_of(version), max_gap=MAX_ATTEMPT_GAP)
        evidence = (self._read(Evidence, Keys.evidence(version, attempt)) for attempt in attempts)
        return any(one.verdict.kind is VerdictKind.PASS for one in evidence)

    def expire(self, version: int, now: datetime) -> None:
        """Record that the weights of ``version`` are deleted on purpose. The caller deletes them later."""
        with contextlib.suppress(ObjectExists):  # by a trainer that is about to end
            self.objects.create(Keys.expired(version), ExpiredDraft(version=version, created=now).to_json())

    # trainer states --------------------------------------------------------------------------------------------------

    def put_trainer_state(self, state: TrainerState, data: bytes) -> None:
        """Write a resumable state, data first, and delete all but the newest :data:`KEPT_TRAINER_STATES`.

        Raises :class:`ObjectExists` when another trainer saved this epoch first. A failure to delete old states is
        only logged: the new state is stored, and the next call deletes what is left of the old ones.
        """
        self.objects.put(Keys.trainer_state_folder(state.epoch) + state.file.name, data)
        self.objects.create(Keys.trainer_state(state.epoch), state.to_json())
        try:
            self._delete_old_states()
        except StoreError as error:
            log.warning("old trainer states were not deleted, so the shards that they name stay too: %s", error)

    def _delete_old_states(self) -> None:
        """Delete the records before the newest :data:`KEPT_TRAINER_STATES`, and all data of their epochs.

        Data may be left without their record, when an earlier deletion was interrupted.
        """
        oldest_kept = min(self.trainer_state_epochs()[-KEPT_TRAINER_STATES:], default=0)
        listed = self.objects.list(Keys.TRAINER_STATE, limit=MAX_RECORDS_LISTED)
        epochs = {epoch for key in listed if (epoch := trainer_state_epoch(key)) is not None}
        for epoch in sorted(epoch for epoch in epochs if epoch < oldest_kept):
            self._delete_trainer_state(epoch)

    def _delete_trainer_state(self, epoch: int) -> None:
        """Delete a state's record, then its folder, with the data of trainers that lost the race for this epoch."""
        self.objects.delete(Keys.trainer_state(epoch))
        for key in list(self.objects.list(Keys.trainer_state_folder(epoch))):
            self.objects.delete(key)

    def trainer_state(self, epoch: int | None = None) -> tuple[TrainerState, bytes] | None:
        """The state of ``epoch``, or the newest one, and its verified data. None when no state is stored."""
        state = self.trainer_state_record(epoch)
        return (state, self.trainer_state_data(state)) if state is not None else None

    def trainer_state_data(self, state: TrainerState, *, max_bytes: int | None = None) -> bytes:
        """The verified data of ``state``.

        Args:
            max_bytes: largest data that are read. None: whatever the record says.

        Raises :class:`InvalidRecord` when the record names larger data, :class:`ObjectMissing` and
        :class:`DigestMismatch`.
        """
        if max_bytes is not None and state.file.size > max_bytes:
            key = Keys.trainer_state(state.epoch)
            raise InvalidRecord(f"{key}: names {state.file.size} bytes; at most {max_bytes} are expected")
        key = Keys.trainer_state_folder(state.epoch) + state.file.name
        return self.objects.get(key, state.file.sha256, max_bytes=state.file.size)

    def trainer_state_record(self, epoch: int | None = None) -> TrainerState | None:
        """The record of the state of ``epoch``, or of the newest one, without its data."""
        epoch = epoch or self.last_trainer_state_epoch()
        if not epoch:
            return None
        state = self._read(TrainerState, Keys.trainer_state(epoch), max_bytes=MAX_STATE_RECORD_BYTES)
        if not all(map(is_shard_key, (*state.consumed, *state.retired))):
            raise InvalidRecord(f"{Keys.trainer_state(epoch)}: names a shard by a key that is no shard's")
        return state

    def last_trainer_state_epoch(self) -> int:
        """The highest epoch of a stored state, readable or not. 0 when no state is stored."""
        return max(self.trainer_state_epochs(), default=0)

    def trainer_state_epochs(self) -> list[int]:
        """The epochs of all stored states, readable or not, oldest first."""
        return self._sequence(Keys.TRAINER_STATE, from_start=False)
