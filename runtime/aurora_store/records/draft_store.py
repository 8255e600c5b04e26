"""Records about drafts: the lineage, checkpoints, registered versions and the channel.

Invariants: of two writers that take one number (lineage, version, epoch), one succeeds and the other gets
:class:`~aurora_store.errors.ObjectExists`. A draft is exactly the two files of :data:`DRAFT_FILES`, and its weights
have the digest of its registration. Both are checked in the manifest before a file is downloaded. Only
:meth:`signed_channel` is verified, so only its version may be served. Other readers use the channel to learn whether
they may still write. The command that exports a draft also takes the active version and its digest from the channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aurora_protocol.draft_records import (
    DRAFT_FILES,
    WEIGHTS_FILE,
    Channel,
    CheckpointManifest,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.signatures import KeyName
from aurora_store.errors import ObjectMissing, ObjectTooLarge, StoreError
from aurora_store.keys import Keys
from aurora_store.records.record_store import RecordStore
from aurora_store.root_ownership import is_void

MAX_CONFIG_BYTES = 64 << 10
"""Largest file of a draft beside its weights."""
MAX_WEIGHTS_BYTES = 64 << 30
"""Largest file of weights, unless the reader sets a lower limit."""
MAX_UNSIGNED_TRIED = 64
"""How many records of the channel are tried at most to find a signed one."""


class DraftStore(RecordStore):
    """The lineage, checkpoints, registrations and the channel."""

    def create_lineage(self, lineage: Lineage) -> None:
        """Write the lineage. Raises :class:`ObjectExists` when another trainer created it first."""
        self.objects.create(Keys.lineage(lineage.number), lineage.to_json())

    def lineage(self) -> Lineage | None:
        """The lineage. None until the trainer has created it."""
        numbers = self._sequence(Keys.LINEAGE)
        if not numbers:
            return None
        return self._read(Lineage, Keys.lineage(numbers[-1]), lambda record: Keys.lineage(record.number))

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
        manifest = self._read(
            CheckpointManifest,
            f"{folder}manifest.json",
            lambda record: f"{Keys.checkpoint(record.version, record.digest)}manifest.json",
        )
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
        registration = registration.model_copy(update={"owner": self.objects.owner})
        self.objects.create(Keys.registration(registration.version), registration.to_json())

    def registration(self, version: int) -> Registration:
        """The registration of ``version``. Raises :class:`ObjectMissing` and :class:`InvalidRecord`."""
        key = Keys.registration(version)
        return self._read(Registration, key, lambda record: Keys.registration(record.version))

    def registrations(self) -> Iterator[Registration]:
        """The readable registrations, newest version first.

        A version that a former owner of the root registered late does not count, nor does an unreadable one.

        Raises :class:`StoreError` while the channel is unreadable, because the channel says which versions count.
        """
        try:
            channel = self.channel()
        except InvalidRecord as error:
            raise StoreError(f"{error}; delete it, and find out who wrote it") from error
        for version in reversed(self._sequence(Keys.REGISTRY)):
            try:
                registration = self.registration(version)
            except (InvalidRecord, ObjectMissing, ObjectTooLarge) as error:
                self._leave_out(Keys.registration(version), str(error))
                continue
            if channel is None or not is_void(registration, channel):
                yield registration

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
        return self._channel(epochs[-1]) if epochs else None

    def signed_channel(self) -> Channel | None:
        """The channel's newest record that the operator signed. None: the channel is empty.

        Records after it are logged and left out.

        Raises :class:`UnsignedRecord` with the newest record's key when none of the newest
        :data:`MAX_UNSIGNED_TRIED` records is signed.
        """
        newest: UnsignedRecord | None = None
        for epoch in self._sequence(Keys.CHANNEL)[: -MAX_UNSIGNED_TRIED - 1 : -1]:
            try:
                return self._channel(epoch, signed_with=KeyName.CHANNEL)
            except UnsignedRecord as error:
                newest = newest or error
            except (InvalidRecord, ObjectTooLarge) as error:
                newest = newest or UnsignedRecord(str(error))
            self._leave_out(Keys.channel(epoch), str(newest))
        if newest is not None:
            raise newest
        return None

    def _channel(self, epoch: int, *, signed_with: KeyName | None = None) -> Channel:
        return self._read(
            Channel, Keys.channel(epoch), lambda record: Keys.channel(record.epoch), signed_with=signed_with
        )


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
