"""Typed records of one speculator: lineages, shards, versions, evidence, the channel, the trainer's progress.

Invariant: what a reader gets from here is a validated record whose data exists; listing order is number order.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from aurora_protocol.draft_records import Channel, CheckpointManifest, Lineage, Registration
from aurora_protocol.evidence_records import Evidence, MeasuredBaseline
from aurora_protocol.training_records import ShardManifest, TrainerState, TrainerStatus
from aurora_store.errors import ObjectMissing, StoreError
from aurora_store.keys import Keys, number_of
from aurora_store.objects import ObjectStore

KEPT_TRAINER_STATES = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredShards:
    """What a listing of a lineage's traces found, by the shards' manifest keys, oldest hour first."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of the data of shards that have a manifest."""
    bare: dict[str, datetime] = field(default_factory=dict)
    """Data without a manifest, and when it was written: an upload under way, or one that nobody will finish."""


class Registry:
    """Reads and writes records. Which part may write what is the caller's duty (design.md, "The store")."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def _last(self, prefix: str) -> str | None:
        return max((key for key in self.objects.list(prefix) if key.endswith(".json")), default=None)

    # lineage -------------------------------------------------------------------------------------------------------

    def create_lineage(self, lineage: Lineage) -> None:
        """Raises :class:`~aurora_runtime.errors.ObjectExists` when another trainer created this number first."""
        self.objects.create(Keys.lineage(lineage.number), lineage.to_json())

    def lineage(self) -> Lineage | None:
        """The newest lineage."""
        key = self._last(Keys.LINEAGE)
        return Lineage.from_json(self.objects.get(key)) if key else None

    # traces --------------------------------------------------------------------------------------------------------

    def put_shard(self, manifest: ShardManifest, data: bytes) -> str:
        """Write a shard, data first; returns the manifest's key. Idempotent: pod, boot and seq make the key unique."""
        stem = Keys.shard(manifest.lineage, manifest.pod, manifest.boot, manifest.seq, manifest.created)
        self.objects.put(f"{stem}.safetensors", data)
        self.objects.create(f"{stem}.json", manifest.to_json())
        return f"{stem}.json"

    def shard_keys(self, lineage: int) -> Iterator[str]:
        """Keys of the manifests of a lineage's shards, oldest hour first."""
        return (key for key in self.objects.list(Keys.traces(lineage)) if key.endswith(".json"))

    def stored_shards(self, lineage: int) -> StoredShards:
        """Every shard of a lineage, with what it costs to keep."""
        listed = {item.key: item for item in self.objects.listed(Keys.traces(lineage))}
        found = StoredShards()
        for key, item in listed.items():
            stem, _, kind = key.rpartition(".")
            if kind == "json":
                data = listed.get(f"{stem}.safetensors")
                found.sizes[key] = data.size if data else 0
            elif f"{stem}.json" not in listed:
                found.bare[f"{stem}.json"] = item.modified
        return found

    def bare_shard(self, manifest_key: str) -> datetime | None:
        """When the data of a shard were written that still has no manifest; None when it has one, or no data."""
        listed = {item.key: item.modified for item in self.objects.listed(f"{manifest_key.removesuffix('json')}")}
        return None if manifest_key in listed else listed.get(f"{manifest_key.removesuffix('.json')}.safetensors")

    def delete_shard(self, manifest_key: str) -> None:
        """Delete a shard, its manifest first, so that none names what is gone. Safe to repeat."""
        self.objects.delete(manifest_key)
        self.objects.delete(f"{manifest_key.removesuffix('.json')}.safetensors")

    def newest_shards(self, lineage: int, limit: int) -> list[str]:
        """Keys of the manifests written last, newest first. Names do not tell: each engine start counts from 0."""
        listed = self.objects.listed(Keys.traces(lineage))
        manifests = ((item.modified, item.key) for item in listed if item.key.endswith(".json"))
        return [key for _, key in heapq.nlargest(limit, manifests)]

    def shard(self, manifest_key: str) -> tuple[ShardManifest, bytes]:
        """A shard's manifest and its verified bytes."""
        manifest = ShardManifest.from_json(self.objects.get(manifest_key))
        data_key = f"{manifest_key.rsplit('/', 1)[0]}/{manifest.file.name}"
        return manifest, self.objects.get(data_key, manifest.file.sha256)

    # checkpoints and versions --------------------------------------------------------------------------------------

    def put_checkpoint(self, manifest: CheckpointManifest, folder: Path) -> str:
        """Upload the files that ``manifest`` names from ``folder``, then the manifest; returns the folder's key."""
        prefix = Keys.checkpoint(manifest.version, manifest.digest)
        for file in manifest.files:
            self.objects.upload(prefix + file.name, folder / file.name)
        self.objects.create(f"{prefix}manifest.json", manifest.to_json())
        return prefix

    def checkpoint(self, registration: Registration) -> CheckpointManifest:
        return CheckpointManifest.from_json(self.objects.get(f"{registration.checkpoint}manifest.json"))

    def fetch_checkpoint(self, registration: Registration, folder: Path) -> CheckpointManifest:
        """Download a version's files into ``folder``, every digest verified."""
        manifest = self.checkpoint(registration)
        folder.mkdir(parents=True, exist_ok=True)
        for file in manifest.files:
            self.objects.download(registration.checkpoint + file.name, folder / file.name, file.sha256)
        return manifest

    def register(self, registration: Registration) -> None:
        """Raises :class:`~aurora_runtime.errors.ObjectExists` when the number is taken."""
        self.objects.create(Keys.registration(registration.version), registration.to_json())

    def registration(self, version: int) -> Registration:
        """Raises :class:`~aurora_runtime.errors.ObjectMissing`."""
        return Registration.from_json(self.objects.get(Keys.registration(version)))

    def last_version(self) -> int | None:
        """The highest registered version."""
        key = self._last(Keys.REGISTRY)
        return number_of(key) if key else None

    # evidence and the channel --------------------------------------------------------------------------------------

    def put_evidence(self, evidence: Evidence) -> str:
        key = Keys.evidence(evidence.version, evidence.attempt)
        self.objects.create(key, evidence.to_json())
        return key

    def evidence(self, version: int) -> Evidence | None:
        """The last attempt's evidence for ``version``."""
        key = self._last(Keys.evidence_of(version))
        return Evidence.from_json(self.objects.get(key)) if key else None

    def evidences(self, version: int) -> Iterator[Evidence]:
        """All evidence for ``version``, first attempt first."""
        keys = sorted(key for key in self.objects.list(Keys.evidence_of(version)) if key.endswith(".json"))
        return (Evidence.from_json(self.objects.get(key)) for key in keys)

    def put_baseline(self, baseline: MeasuredBaseline) -> str:
        key = Keys.baseline(baseline.lineage, baseline.version, baseline.attempt)
        self.objects.create(key, baseline.to_json())
        return key

    def baselines(self, lineage: int) -> Iterator[tuple[str, MeasuredBaseline]]:
        """Keys and records of a lineage's baselines, newest version first."""
        keys = sorted(
            (key for key in self.objects.list(Keys.baselines(lineage)) if key.endswith(".json")), reverse=True
        )
        return ((key, MeasuredBaseline.from_json(self.objects.get(key))) for key in keys)

    def advance_channel(self, channel: Channel) -> None:
        """Raises :class:`~aurora_runtime.errors.ObjectExists` when another operator took this epoch: re-read first."""
        self.objects.create(Keys.channel(channel.epoch), channel.to_json())

    def channel(self) -> Channel | None:
        key = self._last(Keys.CHANNEL)
        return Channel.from_json(self.objects.get(key)) if key else None

    # the trainer ---------------------------------------------------------------------------------------------------

    def put_trainer_status(self, status: TrainerStatus) -> None:
        self.objects.put(Keys.TRAINER_STATUS, status.to_json())

    def trainer_status(self) -> TrainerStatus | None:
        try:
            return TrainerStatus.from_json(self.objects.get(Keys.TRAINER_STATUS))
        except ObjectMissing:
            return None

    def put_trainer_state(self, state: TrainerState, data: bytes) -> None:
        """Write a resumable state, data first, and delete all but the newest few, manifest first.

        Raises :class:`~aurora_runtime.errors.ObjectExists` when another trainer saved this epoch first. Old states that
        the store does not let go are only logged: the state is stored, and the next one's clean-up finds them again.
        """
        self.objects.put(Keys.trainer_state_folder(state.epoch) + state.file.name, data)
        self.objects.create(Keys.trainer_state(state.epoch), state.to_json())
        try:
            for epoch in self.trainer_epochs()[:-KEPT_TRAINER_STATES]:
                self._delete_trainer_state(epoch)
        except StoreError as error:
            log.warning("old trainer states stay, and with them the traces that they name: %s", error)

    def _delete_trainer_state(self, epoch: int) -> None:
        """With whatever lies in its folder: data of a trainer that lost the race for this epoch, too."""
        self.objects.delete(Keys.trainer_state(epoch))
        for data in list(self.objects.list(Keys.trainer_state_folder(epoch))):
            self.objects.delete(data)

    def trainer_state(self, epoch: int | None = None) -> tuple[TrainerState, bytes] | None:
        """A state, the newest unless told which, and its verified bytes."""
        state = self.trainer_record(epoch)
        if state is None:
            return None
        key = Keys.trainer_state_folder(state.epoch) + state.file.name
        return state, self.objects.get(key, state.file.sha256)

    def trainer_epoch(self) -> int:
        """The highest epoch of a stored state, readable or not; 0 without one."""
        return max(self.trainer_epochs(), default=0)

    def trainer_epochs(self) -> list[int]:
        """Of all stored states, readable or not, oldest first."""
        return sorted(number_of(key) for key in self.objects.list(Keys.TRAINER_STATE) if key.endswith(".json"))

    def trainer_record(self, epoch: int | None = None) -> TrainerState | None:
        """What :meth:`trainer_state` gives without the tensors."""
        epoch = epoch or self.trainer_epoch()
        return TrainerState.from_json(self.objects.get(Keys.trainer_state(epoch))) if epoch else None


def digest_of(parts: Sequence[bytes]) -> str:
    """SHA-256 over ``parts`` with their lengths, so that a boundary cannot move unseen."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
