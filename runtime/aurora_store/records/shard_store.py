"""Shards of traces: data and manifests, and the listings by which the trainer bounds them.

An *orphan* is data without a manifest: an upload that is under way, or one that never finished.

Invariants: a shard's data is written before its manifest, and the manifest is deleted before the data. So a manifest
names missing data for a moment at most, when the trainer deletes an orphan just while its upload is tried again. Only
the erasure of a tag replaces what is stored.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import ShardManifest
from aurora_store.errors import ObjectExists, bounded_text
from aurora_store.keys import Keys, is_shard_key, shard_data_key
from aurora_store.records.record_store import RecordStore

MAX_SHARD_BYTES = 4 << 30
"""Largest shard that is read. A shard has 16384 positions by default, about 400 MB for a target of 4096 dimensions."""
REPLACE_TRIES = 3
"""An agent waits for seconds before it tries an upload again, so one more try is nearly always enough."""


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
    """Shards of traces."""

    def put_shard(self, manifest: ShardManifest, data: Path) -> str:
        """Write a shard from the file ``data``, data first. Returns the manifest's key.

        Pod, boot and seq make the key unique, so an object that exists is from an attempt whose answer was lost. That
        object is not replaced, because a tag may have been erased from the shard since then. The trainer may
        also delete the data as an orphan before the manifest is written. So data that existed are written again if they
        are gone.
        """
        stem = _stem(manifest)
        is_new = self._create_file(f"{stem}.safetensors", data)
        with contextlib.suppress(ObjectExists):
            self.objects.create(f"{stem}.json", manifest.to_json())
        if not is_new:
            self._create_file(f"{stem}.safetensors", data)
        return f"{stem}.json"

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
        return self._read(ShardManifest, manifest_key, lambda record: f"{_stem(record)}.json")

    def unverified_shard(self, manifest_key: str) -> bytes:
        """A shard's data, whatever its manifest says. Raises :class:`ObjectMissing` and :class:`ObjectTooLarge`."""
        return self.objects.get(shard_data_key(manifest_key), max_bytes=MAX_SHARD_BYTES)

    def replace_shard(self, manifest_key: str, manifest: ShardManifest, data: bytes) -> None:
        """Give a shard other data under the same key: no manifest, then the new data, then the new manifest.

        An agent that tries its upload again in between writes the former manifest, which names a digest that the data
        do not have. That manifest is deleted. Safe to repeat from the start.

        Raises :class:`ObjectExists` when this happens :data:`REPLACE_TRIES` times.
        """
        for tries_left in reversed(range(REPLACE_TRIES)):
            self.objects.delete(manifest_key)
            self.objects.put(shard_data_key(manifest_key), data)
            try:
                self.objects.create(manifest_key, manifest.to_json())
            except ObjectExists:
                if not tries_left:
                    raise
            else:
                return

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


def _stem(manifest: ShardManifest) -> str:
    return Keys.shard(manifest.lineage, manifest.pod, manifest.boot, manifest.seq, manifest.created)
