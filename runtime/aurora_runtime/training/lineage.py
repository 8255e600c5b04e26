"""Creates the lineage with its initial draft, version 0, so that serving can start before any traffic.

Invariant: wherever the lineage's record exists, version 0 exists too. The order is checkpoint, registration, lineage. A
crash in between is repaired by running this again: the initial draft is deterministic, and a draft that is already
registered is kept.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.draft_records import INITIAL_VERSION, CheckpointManifest, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.engine.draft_file_check import check_draft, max_weights_bytes
from aurora_runtime.errors import CheckpointFormatError, DraftRefused
from aurora_runtime.training.model import checkpoint, initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import Keys, Registry
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing

FIRST_LINEAGE: Final = 1
log = logging.getLogger(__name__)


def open_lineage(registry: Registry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    """The store's lineage, created with its version 0 when there is none. Safe to repeat after any failure.

    Raises :class:`CheckpointFormatError` when the stored lineage belongs to another target.
    """
    lineage = registry.lineage()
    if lineage is None:
        lineage = _create(registry, target, spec, now)
    for digest in ("config_sha256", "tokenizer_sha256"):
        if getattr(lineage.target, digest) != getattr(target.identity, digest):
            raise CheckpointFormatError(
                f"lineage {lineage.number} was made for another target: {digest} of the model at "
                f"{target.identity.model} differs. Create another AuroraSpeculator for the changed model"
            )
    return lineage


def _create(registry: Registry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    with tempfile.TemporaryDirectory() as scratch:
        config, exported = _ensure_version_0(registry, target, spec, Path(scratch), now)
    lineage = Lineage(
        number=FIRST_LINEAGE,
        target=target.identity,
        architecture=spec.architecture,
        draft_vocab_size=config.draft_vocab_size,
        aux_layers=config.aux_layers,
        tensors=exported.tensors,
        draft_sizes=config.sizes,
        created=now(),
    )
    try:
        registry.create_lineage(lineage)
        log.info("created lineage %d with draft version %d", FIRST_LINEAGE, INITIAL_VERSION)
    except ObjectExists:
        stored = registry.lineage()
        if stored is None:
            raise
        return stored
    return lineage


def _ensure_version_0(
    registry: Registry, target: TargetModel, spec: DraftSpec, folder: Path, now: Callable[[], datetime]
) -> tuple[DraftConfig, checkpoint.ExportedCheckpoint]:
    """Register the initial draft unless version 0 is registered; returns the config and files of version 0."""
    try:
        registry.fetch_checkpoint(registry.registration(INITIAL_VERSION), folder)
    except ObjectMissing:
        draft, ids = _new_draft(target, spec)
        exported = checkpoint.export(draft, ids, folder)
        manifest = CheckpointManifest(
            lineage=FIRST_LINEAGE,
            version=INITIAL_VERSION,
            digest=exported.digest,
            files=exported.files,
            step=0,
            trained_tokens=0,
            provenance=provenance(),
            created=now(),
        )
        publish(registry, folder, manifest)
        return draft.config, exported
    expected = initial_draft.draft_config(target, spec.vocab_size)
    draft, ids = checkpoint.load(folder, target.embedding, expected)
    return draft.config, checkpoint.export(draft, ids, folder)


def _new_draft(target: TargetModel, spec: DraftSpec) -> tuple[DraftModel, torch.Tensor]:
    """The initial draft and the target ids of its tokens."""
    copied = target.last_layer
    log.info("of the target's last layer: attention %s; feed-forward layer %s", copied.attention, copied.feed_forward)
    config = initial_draft.draft_config(target, spec.vocab_size)
    ids = initial_draft.initial_vocabulary(spec.vocab_size, target.identity.vocab_size, target.special_tokens)
    return initial_draft.initial_draft(target, config, ids), ids


def publish(
    registry: Registry, folder: Path, manifest: CheckpointManifest, acceptance_length: float | None = None
) -> Registration:
    """Upload a checkpoint and register its version; idempotent for the same weights under the same version.

    Raises :class:`~aurora_store.errors.ObjectExists` when the version is taken by other weights.
    """
    registration = Registration(
        version=manifest.version,
        lineage=manifest.lineage,
        checkpoint=Keys.checkpoint(manifest.version, manifest.digest),
        digest=manifest.digest,
        held_out_acceptance_length=acceptance_length,
        trained_tokens=manifest.trained_tokens,
        created=manifest.created,
    )
    try:
        registry.checkpoint(registration)  # uploaded whole by a run that died before it registered the version
    except ObjectMissing:
        registry.put_checkpoint(manifest, folder)
    try:
        registry.register(registration)
    except ObjectExists:
        try:
            stored = registry.registration(manifest.version)
        except InvalidRecord:
            stored = None
        if stored is None or stored.digest != manifest.digest:
            raise
        return stored
    return registration


def fetch_draft(registry: Registry, number: int, target: TargetModel) -> tuple[DraftModel, VocabularyMap]:
    """The draft of a registered version, and its vocabulary map.

    Raises :class:`DraftRefused` when an engine would not load the draft.
    """
    lineage = registry.lineage()
    if lineage is None:
        raise CheckpointFormatError("the store has no lineage")
    with tempfile.TemporaryDirectory() as scratch:
        limit = max_weights_bytes(lineage)
        registry.fetch_checkpoint(registry.registration(number), Path(scratch), max_weights_bytes=limit)
        check_draft(Path(scratch), lineage)
        expected = initial_draft.draft_config(target, target.identity.vocab_size)
        draft, ids = checkpoint.load(Path(scratch), target.embedding, expected)
    return draft, VocabularyMap.of(ids, target.identity.vocab_size)


def newest_draft(registry: Registry, target: TargetModel) -> tuple[Registration, tuple[DraftModel, VocabularyMap]]:
    """The newest version whose draft can be read, and the draft. Versions that cannot be read are logged.

    Raises :class:`CheckpointFormatError` when no version can be read.
    """
    for registration in registry.registrations():
        try:
            return registration, fetch_draft(registry, registration.version, target)
        except (ObjectMissing, DigestMismatch, InvalidRecord, DraftRefused, CheckpointFormatError) as error:
            log.error("version %d cannot be read; trying the one before: %s", registration.version, error)  # noqa: TRY400
    raise CheckpointFormatError("the store has no version that can be read")


def provenance() -> dict[str, str]:
    """Versions of the software that made a checkpoint."""
    return {"torch": str(torch.__version__), "aurora": version("aurora-operator")}


def utc_now() -> datetime:
    """The time in whole seconds, as records keep it."""
    return datetime.now(UTC).replace(microsecond=0)
