"""Records of one speculator that its operator and its pods share: drafts, the channel, evidence, the trainer's status.

Shards of traces and trainer states are for pods alone (``aurora_runtime.pod_registry``).

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

import logging
from pathlib import Path
from typing import TypeVar

from aurora_protocol.draft_records import (
    DRAFT_FILES,
    WEIGHTS_FILE,
    Channel,
    CheckpointManifest,
    ExpiredDraft,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import StoredRecord
from aurora_protocol.signatures import KeyName, SigningKeys, signed, verified
from aurora_protocol.training_records import ShardManifest, TrainerState, TrainerStatus
from aurora_store.errors import DraftExpired, ObjectMissing, StoreError, bounded_text
from aurora_store.keys import MAX_ATTEMPT_GAP, MAX_NUMBER_GAP, Keys, in_sequence, record_numbers
from aurora_store.objects import MAX_RECORD_BYTES, ObjectStore

log = logging.getLogger(__name__)
R = TypeVar("R", bound=StoredRecord)
MAX_RECORDS_LISTED = 100_000
"""Most objects of one listing of records. A speculator makes one record for each version or decision."""
MAX_CONFIG_BYTES = 64 << 10
"""Largest file of a draft beside its weights."""
MAX_WEIGHTS_BYTES = 64 << 30
"""Largest file of weights, unless the reader sets a lower limit."""
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
        case ExpiredDraft():
            return Keys.expired(record.version)
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


class Registry:
    """Reads and writes the records of one speculator.

    A draft is exactly the two files of :data:`DRAFT_FILES`, and its weights have the digest of its registration. Both
    are checked in the manifest before a file is downloaded. The channel is not verified here: readers use it to learn
    whether they may still write, or to export a draft. Pods serve only a version that a verified record names
    (``PodRegistry.signed_channel``). Validators sign evidence, and the operator verifies it when it reads it.
    """

    def __init__(self, objects: ObjectStore, keys: SigningKeys | None = None) -> None:
        """``keys``: those that this process signs and verifies records with."""
        self.objects = objects
        self._signing_keys: SigningKeys = {} if keys is None else keys

    def _sequence(self, prefix: str, *, from_start: bool = True, max_gap: int = MAX_NUMBER_GAP) -> list[int]:
        """The numbers of the records directly below ``prefix``, up to the first that is out of sequence.

        Args:
            from_start: whether the sequence begins with the first number. False where old records are deleted: the
                sequence then begins with the lowest number that is left.
            max_gap: most numbers that the sequence may skip.
        """
        numbers = record_numbers(self.objects.list(prefix, limit=MAX_RECORDS_LISTED), prefix)
        return in_sequence(numbers, 0 if from_start else min(numbers, default=0), max_gap=max_gap)

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

    # drafts and the channel ------------------------------------------------------------------------------------------

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

        Raises :class:`DraftExpired` or another :class:`ObjectMissing`, and :class:`InvalidRecord` when the manifest
        contradicts the registration or names other files than those of a draft, or too large ones.
        """
        folder = Keys.checkpoint(registration.version, registration.digest)
        if registration.checkpoint != folder:
            raise InvalidRecord(f"version {registration.version} is registered with a folder that is not its own")
        try:
            manifest = self._read(CheckpointManifest, f"{folder}manifest.json")
        except ObjectMissing:
            self._require_not_expired(registration.version)
            raise
        _require_draft(manifest, registration)
        for file in manifest.files:
            limit = max_weights_bytes if file.name == WEIGHTS_FILE else MAX_CONFIG_BYTES
            if file.size > limit:
                raise InvalidRecord(f"the draft's {file.name} has {file.size} bytes; at most {limit} are expected")
        return manifest

    def _require_not_expired(self, version: int) -> None:
        """Raise :class:`DraftExpired` when the weights of ``version`` were deleted on purpose."""
        try:
            expired = self._read(ExpiredDraft, Keys.expired(version))
        except (StoreError, InvalidRecord):
            return
        raise DraftExpired(f"version {version} expired on {expired.created:%Y-%m-%d} (training.draftHistoryLimit)")

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

    def expired_versions(self) -> frozenset[int]:
        """The versions whose weights are deleted, or soon will be."""
        return frozenset(record_numbers(self.objects.list(Keys.EXPIRED, limit=MAX_RECORDS_LISTED), Keys.EXPIRED))

    def advance_channel(self, channel: Channel) -> None:
        """Write the channel's next record.

        Raises :class:`ObjectExists` when another operator took this epoch: read the channel again before a retry.
        """
        self._create_signed(Keys.channel(channel.epoch), channel, KeyName.CHANNEL)

    def channel(self) -> Channel | None:
        """The channel's record with the highest epoch. It is not verified."""
        epochs = self._sequence(Keys.CHANNEL)
        return self._read(Channel, Keys.channel(epochs[-1])) if epochs else None

    # evidence and the trainer's status -------------------------------------------------------------------------------

    def put_evidence(self, evidence: Evidence) -> str:
        """Write the evidence of one attempt. Returns its key. Raises :class:`ObjectExists` when the attempt has one."""
        key = key_of(evidence)
        self._create_signed(key, evidence, KeyName.EVIDENCE)
        return key

    def evidence(self, version: int) -> Evidence | None:
        """The evidence of the last attempt at measuring ``version``, to be shown to people. It is not verified."""
        attempts = self._sequence(Keys.evidence_of(version), max_gap=MAX_ATTEMPT_GAP)
        return self._read(Evidence, Keys.evidence(version, attempts[-1])) if attempts else None

    def put_trainer_status(self, status: TrainerStatus) -> None:
        """Overwrite the trainer's status."""
        self.objects.put(Keys.TRAINER_STATUS, status.to_json())

    def trainer_status(self) -> TrainerStatus | None:
        """The trainer's status. None before the trainer has started for the first time."""
        try:
            return TrainerStatus.from_json(self.objects.get(Keys.TRAINER_STATUS))
        except ObjectMissing:
            return None


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
