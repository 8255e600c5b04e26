"""All records of one speculator: drafts, evidence, shards and the trainer's progress. The one reader of what is stored.

Invariants:

- A reader gets validated records, and the data that a record names was written before the record. Each part writes only
  its own records.
- An object whose name is not a record's, or whose number is out of sequence, is left out. So it stops nobody from
  reading the others. A record is returned only when its own numbers belong to its key.
- Of two writers that take one number (lineage, version, epoch), one succeeds and the other gets
  :class:`~aurora_store.errors.ObjectExists`.
- A writer without the key of a record writes it unsigned, and then no reader that verifies signatures believes it.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from aurora_protocol.draft_records import (
    DRAFT_FILES,
    WEIGHTS_FILE,
    Channel,
    CheckpointManifest,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import StoredRecord
from aurora_protocol.signatures import KeyName, SigningKeys, signed, verified
from aurora_protocol.training_records import ShardManifest, TrainerState, TrainerStatus
from aurora_store.errors import ObjectExists, ObjectMissing, ObjectTooLarge, StoreError, bounded_text
from aurora_store.keys import (
    MAX_ATTEMPT_GAP,
    MAX_NUMBER_GAP,
    Keys,
    in_sequence,
    is_shard_key,
    record_numbers,
    shard_data_key,
    trainer_state_epoch,
)
from aurora_store.objects import MAX_RECORD_BYTES, ObjectStore

log = logging.getLogger(__name__)
R = TypeVar("R", bound=StoredRecord)
MAX_RECORDS_LISTED = 100_000
"""Most objects of one listing of records. A speculator makes one record for each version or decision."""
MAX_FOREIGN_KEYS = 100
"""How many records that cannot be read are logged at most."""
MAX_CONFIG_BYTES = 64 << 10
"""Largest file of a draft beside its weights."""
MAX_WEIGHTS_BYTES = 64 << 30
"""Largest file of weights, unless the reader sets a lower limit."""
MAX_UNSIGNED_TRIED = 64
"""How many records of the channel are tried at most to find a signed one."""
MAX_SHARD_BYTES = 4 << 30
"""Largest shard that is read. A shard has 16384 positions by default, about 400 MB for a target of 4096 dimensions."""
KEPT_TRAINER_STATES = 2
MAX_STATE_RECORD_BYTES = 256 << 20
"""Largest record of a trainer state. The record names every shard that the state has learned from."""


def key_of(record: StoredRecord) -> str:
    """The key to which a record's own numbers belong."""
    match record:
        case Lineage():
            return Keys.lineage(record.number)
        case CheckpointManifest():
            return f"{Keys.checkpoint(record.version, record.digest)}manifest.json"
        case Registration():
            return Keys.registration(record.version)
        case Channel():
            return Keys.channel(record.epoch)
        case Evidence():
            return Keys.evidence(record.version, record.attempt)
        case ShardManifest():
            return f"{Keys.shard(record.lineage, record.pod, record.boot, record.seq, record.created)}.json"
        case TrainerState():
            return Keys.trainer_state(record.epoch)
        case TrainerStatus():
            return Keys.TRAINER_STATUS
    raise TypeError(f"{type(record).__name__} has no numbers")


class RecordStore:
    """Records are the ``.json`` objects. Numbers in keys are zero-padded, so key order is number order."""

    def __init__(self, objects: ObjectStore, keys: SigningKeys | None = None) -> None:
        """``keys``: those that this process signs and verifies records with."""
        self.objects = objects
        self._signing_keys: SigningKeys = {} if keys is None else keys
        self._foreign_keys: set[str] = set()

    def _sequence(self, prefix: str, *, from_start: bool = True, max_gap: int = MAX_NUMBER_GAP) -> list[int]:
        """The numbers of the records directly below ``prefix``, up to the first that is out of sequence.

        Args:
            from_start: whether the sequence begins with the first number. False where old records are deleted: the
                sequence then begins with the lowest number that is left.
            max_gap: most numbers that the sequence may skip.
        """
        numbers = record_numbers(self._json_keys(prefix), prefix)
        return in_sequence(numbers, 0 if from_start else min(numbers, default=0), max_gap=max_gap)

    def _json_keys(self, prefix: str) -> list[str]:
        listed = self.objects.list(prefix, limit=MAX_RECORDS_LISTED)
        return sorted(key for key in listed if key.endswith(".json") and "/" not in key.removeprefix(prefix))

    def _leave_out(self, key: str, reason: str) -> None:
        """Log a record that cannot be read, once."""
        if key not in self._foreign_keys and len(self._foreign_keys) < MAX_FOREIGN_KEYS:
            self._foreign_keys.add(key)
            log.warning("left out: %s", reason)

    def _create_signed(self, key: str, record: StoredRecord, name: KeyName) -> None:
        """Write ``record`` at ``key``, signed with the key ``name`` if this process holds it."""
        secret, data = self._signing_keys.get(name), record.to_json()
        self.objects.create(key, data if secret is None else signed(data, self._place(key), secret))

    def _place(self, key: str) -> str:
        """The place in the store that a signature covers."""
        return f"{self.objects.config.root}/{key}"

    def _verified(self, data: bytes, key: str, name: KeyName) -> bytes:
        """The record in ``data`` without its signatures. Raises :class:`UnsignedRecord`."""
        secret = self._signing_keys.get(name)
        if secret is None:
            raise UnsignedRecord(f"this process has no {name.value} to verify it with")
        return verified(data, self._place(key), secret)

    def _read(
        self,
        model: type[R],
        key: str,
        *,
        max_bytes: int = MAX_RECORD_BYTES,
        signed_with: KeyName | None = None,
    ) -> R:
        """The record at ``key``.

        Args:
            signed_with: the key that the record must be signed with. None: a record of this kind is not signed.

        Raises :class:`ObjectMissing`, and :class:`InvalidRecord` with the key.
        """
        try:
            data = self.objects.get(key, max_bytes=max_bytes)
            record = model.from_json(data if signed_with is None else self._verified(data, key, signed_with))
        except InvalidRecord as error:
            raise type(error)(bounded_text(f"{key}: {error}")) from error
        if key_of(record) != key:
            raise InvalidRecord(bounded_text(f"{key}: the record's own numbers belong to {key_of(record)}"))
        return record


class DraftStore(RecordStore):
    """The lineage, checkpoints, registrations and the channel.

    A draft is exactly the two files of :data:`DRAFT_FILES`, and its weights have the digest of its registration. Both
    are checked in the manifest before a file is downloaded. Only :meth:`signed_channel` is verified, so only its
    version may be served. Other readers use the channel to learn whether they may still write, or to export a draft.
    """

    def create_lineage(self, lineage: Lineage) -> None:
        """Write the lineage. Raises :class:`ObjectExists` when another trainer created it first."""
        self.objects.create(Keys.lineage(lineage.number), lineage.to_json())

    def lineage(self) -> Lineage | None:
        """The lineage. None until the trainer has created it."""
        numbers = self._sequence(Keys.LINEAGE)
        if not numbers:
            return None
        return self._read(Lineage, Keys.lineage(numbers[-1]))

    def put_checkpoint(self, manifest: CheckpointManifest, folder: Path) -> str:
        """Upload the files that ``manifest`` names from ``folder``, then the manifest. Returns the folder's key."""
        prefix = Keys.checkpoint(manifest.version, manifest.digest)
        for file in manifest.files:
            self.objects.upload(prefix + file.name, folder / file.name)
        self.objects.create(f"{prefix}manifest.json", manifest.to_json())
        return prefix

    def checkpoint(
        self, registration: Registration, *, max_weights_bytes: int = MAX_WEIGHTS_BYTES
    ) -> CheckpointManifest:
        """The manifest of a version's checkpoint.

        Args:
            max_weights_bytes: largest file of weights that the manifest may name.

        Raises :class:`ObjectMissing`, and :class:`InvalidRecord` when the manifest contradicts the registration or
        names other files than those of a draft, or too large ones.
        """
        folder = Keys.checkpoint(registration.version, registration.digest)
        if registration.checkpoint != folder:
            raise InvalidRecord(f"version {registration.version} is registered with a folder that is not its own")
        manifest = self._read(CheckpointManifest, f"{folder}manifest.json")
        _require_draft(manifest, registration)
        for file in manifest.files:
            limit = max_weights_bytes if file.name == WEIGHTS_FILE else MAX_CONFIG_BYTES
            if file.size > limit:
                raise InvalidRecord(f"the draft's {file.name} has {file.size} bytes; at most {limit} are expected")
        return manifest

    def fetch_checkpoint(
        self, registration: Registration, folder: Path, *, max_weights_bytes: int = MAX_WEIGHTS_BYTES
    ) -> CheckpointManifest:
        """Download the two files of a version's draft into ``folder``.

        Args:
            max_weights_bytes: largest file of weights that is downloaded.

        Raises :class:`ObjectMissing`, :class:`ObjectTooLarge`, :class:`DigestMismatch` and :class:`InvalidRecord`.
        """
        manifest = self.checkpoint(registration, max_weights_bytes=max_weights_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            name = registration.checkpoint + file.name
            self.objects.download(name, folder / file.name, file.sha256, max_bytes=file.size)
        return manifest

    def register(self, registration: Registration) -> None:
        """Offer a version for validation. Raises :class:`ObjectExists` when the version is taken."""
        self.objects.create(Keys.registration(registration.version), registration.to_json())

    def registration(self, version: int) -> Registration:
        """The registration of ``version``. Raises :class:`ObjectMissing` and :class:`InvalidRecord`."""
        return self._read(Registration, Keys.registration(version))

    def registrations(self) -> Iterator[Registration]:
        """The readable registrations, newest version first.

        A version whose registration cannot be read is left out.
        """
        for version in reversed(self._sequence(Keys.REGISTRY)):
            try:
                yield self.registration(version)
            except (InvalidRecord, ObjectMissing, ObjectTooLarge) as error:
                self._leave_out(Keys.registration(version), str(error))

    def last_version(self) -> int | None:
        """The highest version of :meth:`registrations`."""
        return next((registration.version for registration in self.registrations()), None)

    def advance_channel(self, channel: Channel) -> None:
        """Write the channel's next record.

        Raises :class:`ObjectExists` when another operator took this epoch: read the channel again before a retry.
        """
        self._create_signed(Keys.channel(channel.epoch), channel, KeyName.CHANNEL)

    def channel(self) -> Channel | None:
        """The channel's record with the highest epoch. It is not verified."""
        epochs = self._sequence(Keys.CHANNEL)
        return self._read(Channel, Keys.channel(epochs[-1])) if epochs else None

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
            self._leave_out(Keys.channel(epoch), str(newest))
        if newest is not None:
            raise newest
        return None


class EvidenceStore(RecordStore):
    """Evidence. Validators sign it, and the operator verifies it when it reads it."""

    def put_evidence(self, evidence: Evidence) -> str:
        """Write the evidence of one attempt. Returns its key. Raises :class:`ObjectExists` when the attempt has one."""
        key = key_of(evidence)
        self._create_signed(key, evidence, KeyName.EVIDENCE)
        return key

    def evidence(self, version: int) -> Evidence | None:
        """The evidence of the last attempt at measuring ``version``, to be shown to people. It is not verified."""
        attempts = self._sequence(Keys.evidence_of(version), max_gap=MAX_ATTEMPT_GAP)
        return self._read(Evidence, Keys.evidence(version, attempts[-1])) if attempts else None


@dataclass(frozen=True)
class ShardListing:
    """All shards of a lineage, by the keys of their manifests, oldest hour first."""

    data_bytes: dict[str, int] = field(default_factory=dict)
    """Size of the data of each shard that has a manifest."""
    orphans: dict[str, datetime] = field(default_factory=dict)
    """When the data of each shard without a manifest was written."""
    written: dict[str, datetime] = field(default_factory=dict)
    """When the store got the later of each shard's two objects."""


class ShardStore(RecordStore):
    """Shards of traces.

    An *orphan* is data without a manifest: an upload that is under way, or one that never finished. A shard's data is
    written before its manifest, and the manifest is deleted before the data. So a manifest names missing data for a
    moment at most, when the trainer deletes an orphan just while its upload is tried again. Only an erasure replaces
    what is stored.
    """

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

    def shard_keys(self, lineage: int) -> Iterator[str]:
        """Keys of the manifests of a lineage's shards, oldest hour first."""
        return (key for key in self.objects.list(Keys.traces(lineage)) if is_shard_key(key))

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


class TrainerStore(RecordStore):
    """The trainer's status and states. The states are create-once, and the newest are kept.

    A state's record is deleted before its data, so a record never names missing data.
    """

    def put_trainer_status(self, status: TrainerStatus) -> None:
        """Overwrite the trainer's status."""
        self.objects.put(Keys.TRAINER_STATUS, status.to_json())

    def trainer_status(self) -> TrainerStatus | None:
        """The trainer's status. None before the trainer has started for the first time."""
        try:
            return TrainerStatus.from_json(self.objects.get(Keys.TRAINER_STATUS))
        except ObjectMissing:
            return None

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


class Registry(DraftStore, ShardStore, EvidenceStore, TrainerStore):
    """Reads and writes the records of one speculator."""


def _require_draft(manifest: CheckpointManifest, registration: Registration) -> None:
    """Raise :class:`InvalidRecord` unless ``manifest`` names exactly the draft that was registered."""
    if sorted(file.name for file in manifest.files) != sorted(DRAFT_FILES):
        raise InvalidRecord(f"a draft is exactly {' and '.join(DRAFT_FILES)}; its manifest names other files")
    if manifest.lineage != registration.lineage:
        raise InvalidRecord(f"the manifest is of lineage {manifest.lineage}, not of {registration.lineage}")
    if (manifest.version, manifest.digest) != (registration.version, registration.digest):
        raise InvalidRecord("the manifest contradicts the registration")
    if any(file.sha256 != registration.digest for file in manifest.files if file.name == WEIGHTS_FILE):
        raise InvalidRecord(f"the manifest's {WEIGHTS_FILE} has another digest than the registration")
