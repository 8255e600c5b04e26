"""Writes shards to a store from bytes in memory. An agent writes them from files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aurora_protocol.training_records import ShardManifest
from aurora_runtime.pod_registry import PodRegistry


def put_shard_bytes(registry: PodRegistry, manifest: ShardManifest, data: bytes) -> str:
    """Write ``data`` as a shard, whatever its manifest says. Returns the manifest's key."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shard"
        file.write_bytes(data)
        return registry.put_shard(manifest, file)
