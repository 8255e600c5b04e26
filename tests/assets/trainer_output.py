"""Writes draft versions and trainer states to a store, as a trainer does, but without training."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from aurora_protocol.draft_records import CheckpointManifest, FileRef, Registration
from aurora_protocol.training_records import TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys
from aurora_store.objects import sha256_file

DRAFT_FILES = ("config.json", "model.safetensors")


def publish_draft(registry: PodRegistry, draft: Path, version: int, *, lineage: int = 1) -> Registration:
    """Upload the folder ``draft`` and register it as ``version``. The content is not checked."""
    files = tuple(
        FileRef(name=name, sha256=sha256_file(draft / name), size=(draft / name).stat().st_size) for name in DRAFT_FILES
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


def put_trainer_state(
    registry: PodRegistry,
    *,
    consumed: tuple[str, ...] = (),
    retired: tuple[str, ...] = (),
    forgotten: int = 0,
    epoch: int | None = None,
) -> TrainerState:
    """Store a trainer state that lists these shards. Its data file contains no tensors.

    Args:
        epoch: Default: the epoch after the newest one in the store.
    """
    data = b"state"
    digest = hashlib.sha256(data).hexdigest()
    state = TrainerState(
        epoch=epoch or registry.last_trainer_state_epoch() + 1,
        lineage=1,
        step=0,
        trained_tokens=0,
        consumed=consumed,
        retired=retired,
        forgotten=forgotten,
        file=FileRef(name=Keys.trainer_state_file(digest), sha256=digest, size=len(data)),
        created=datetime.now(UTC),
    )
    registry.put_trainer_state(state, data)
    return state
