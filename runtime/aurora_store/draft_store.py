"""Records about drafts: lineages, checkpoints, registered versions and the channel.

Invariant: of two writers that take one number (lineage, version, epoch), one succeeds and the other gets
:class:`~aurora_store.errors.ObjectExists`.
"""

from __future__ import annotations

from pathlib import Path

from aurora_protocol.draft_records import Channel, CheckpointManifest, Lineage, Registration
from aurora_store.keys import Keys, number_of
from aurora_store.records import RecordStore
from aurora_store.root_ownership import is_void


class DraftStore(RecordStore):
    """Lineages, checkpoints, registrations and the channel."""

    def create_lineage(self, lineage: Lineage) -> None:
        """Write a lineage. Raises :class:`ObjectExists` when another trainer created this number first."""
        self.objects.create(Keys.lineage(lineage.number), lineage.to_json())

    def lineage(self) -> Lineage | None:
        """The newest lineage."""
        key = self._last_record_key(Keys.LINEAGE)
        return Lineage.from_json(self.objects.get(key)) if key else None

    def put_checkpoint(self, manifest: CheckpointManifest, folder: Path) -> str:
        """Upload the files that ``manifest`` names from ``folder``, then the manifest. Returns the folder's key."""
        prefix = Keys.checkpoint(manifest.version, manifest.digest)
        for file in manifest.files:
            self.objects.upload(prefix + file.name, folder / file.name)
        self.objects.create(f"{prefix}manifest.json", manifest.to_json())
        return prefix

    def checkpoint(self, registration: Registration) -> CheckpointManifest:
        """The manifest of a version's checkpoint. Raises :class:`ObjectMissing`."""
        return CheckpointManifest.from_json(self.objects.get(f"{registration.checkpoint}manifest.json"))

    def fetch_checkpoint(self, registration: Registration, folder: Path) -> CheckpointManifest:
        """Download a version's files into ``folder``.

        Raises :class:`ObjectMissing`, :class:`ObjectTooLarge` and :class:`DigestMismatch`.
        """
        manifest = self.checkpoint(registration)
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
        """The registration of ``version``. Raises :class:`ObjectMissing`."""
        return Registration.from_json(self.objects.get(Keys.registration(version)))

    def last_version(self) -> int | None:
        """The highest registered version. A version that a former owner of the root registered late does not count."""
        versions = [number_of(key) for key in self._record_keys(Keys.REGISTRY)]
        channel = self.channel()
        return next((v for v in reversed(versions) if not self._is_void(v, channel)), None)

    def _is_void(self, version: int, channel: Channel | None) -> bool:
        """Whether ``version`` was registered by a speculator that had lost the root."""
        if channel is None or channel.inherited_version is None or version <= channel.inherited_version:
            return False
        return is_void(self.registration(version), channel)

    def advance_channel(self, channel: Channel) -> None:
        """Write the channel's next record.

        Raises :class:`ObjectExists` when another operator took this epoch: read the channel again before a retry.
        """
        self.objects.create(Keys.channel(channel.epoch), channel.to_json())

    def channel(self) -> Channel | None:
        """The channel's record with the highest epoch."""
        key = self._last_record_key(Keys.CHANNEL)
        return Channel.from_json(self.objects.get(key)) if key else None
