"""Draft versions in a store, published as the trainer does: files, manifest, registration."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from aurora_api.records import CheckpointManifest, FileRef, Registration
from aurora_runtime.store import Registry
from aurora_runtime.store.objects import sha256_file

FILES = ("config.json", "model.safetensors")


def publish(registry: Registry, draft: Path, version: int, *, lineage: int = 1) -> Registration:
    """Upload the folder ``draft`` and register it as ``version``, whatever is in it."""
    files = tuple(
        FileRef(name=name, sha256=sha256_file(draft / name), size=(draft / name).stat().st_size) for name in FILES
    )
    manifest = CheckpointManifest(
        lineage=lineage,
        version=version,
        digest=files[1].sha256,
        files=files,
        step=0,
        trained_tokens=0,
        created=datetime.now(UTC),
    )
    registration = Registration(
        version=version,
        lineage=lineage,
        checkpoint=registry.put_checkpoint(manifest, draft),
        digest=manifest.digest,
        trained_tokens=0,
        created=datetime.now(UTC),
    )
    registry.register(registration)
    return registration
