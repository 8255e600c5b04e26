"""Creates the lineage with its first drafts, so that serving can start before any traffic.

Version 0 is made from the target's weights, and is served without a measurement. Where ``draft.initial`` names a
published head, version 0 has the head's sizes and vocabulary map, and version 1 is the head: a candidate that the gate
measures like any other. Training continues from the newest version, which is then the head.

Invariant: wherever the lineage's record exists, version 0 exists too, and so does the head. The order is version 0, the
head, the lineage, and a checkpoint comes before its registration. A crash in between is repaired by running this again:
the same target and head give the same bytes, and a draft that is already registered is kept. A published head is read
only until the lineage exists.

In a lineage that an earlier version of Aurora began with a head, version 0 is the head. It stays so, also where the
earlier version ended before it created the lineage's record.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from aurora_api.v1alpha1.draft import ARCHITECTURE, DraftSpec
from aurora_protocol.draft_records import (
    INITIAL_VERSION,
    LINEAGE_NUMBER,
    CheckpointManifest,
    InitialHead,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_config import DraftConfig, lineage_config
from aurora_runtime.engine.draft_file_check import check_draft, max_weights_bytes
from aurora_runtime.errors import CheckpointFormatError, DraftRefused, HeadRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.heads.published_head import HEAD_DIGEST, MADE_FOR_HEAD_DIGEST, ImportedHead, read_head
from aurora_runtime.training.model import checkpoint, initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.families import require_family
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import Keys
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing

HEAD_VERSION: Final = INITIAL_VERSION + 1
"""Version of the published head that a lineage starts from."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Beginning:
    """The sizes and the vocabulary of a new lineage, and the published head that it starts from, if any."""

    config: DraftConfig
    ids: torch.Tensor  # [draft_vocab]: the target ids of the draft's tokens
    head: ImportedHead | None

    @property
    def origin(self) -> InitialHead | None:
        return self.head.origin if self.head else None


def open_lineage(registry: PodRegistry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    """The store's lineage, created with its first drafts when there is none. Safe to repeat after any failure.

    Raises :class:`CheckpointFormatError` when the stored lineage belongs to another target, and
    :class:`~aurora_runtime.errors.TargetUnavailable` when no lineage can begin for a model of this family.
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


def _create(registry: PodRegistry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    require_family(target.family, target.config.architectures, target.identity.model)
    beginning = _beginning(target, spec)
    with tempfile.TemporaryDirectory() as scratch:
        manifest, exported = _ensure_version_0(registry, target, beginning, Path(scratch), now)
    if beginning.head is not None and HEAD_DIGEST not in manifest.provenance:
        _ensure_head(registry, beginning.head, now)
    config = beginning.config
    lineage = Lineage(
        number=LINEAGE_NUMBER,
        target=target.identity,
        architecture=ARCHITECTURE,
        draft_vocab_size=config.draft_vocab_size,
        aux_layers=config.aux_layers,
        tensors=exported.tensors,
        draft_sizes=config.sizes,
        initial=beginning.origin,
        created=now(),
    )
    try:
        registry.create_lineage(lineage)
        log.info("created lineage %d with draft version %d", LINEAGE_NUMBER, INITIAL_VERSION)
    except ObjectExists:
        stored = registry.lineage()
        if stored is None:
            raise
        return stored
    return lineage


def _beginning(target: TargetModel, spec: DraftSpec) -> _Beginning:
    if spec.initial is not None:
        head = read_head(spec.initial, target)
        log.info("the lineage starts from the head %s, sha256 %s", spec.initial.model, head.origin.sha256)
        return _Beginning(head.draft.config, head.ids, head)
    copied = target.last_layer
    log.info("of the target's last layer: attention %s; feed-forward layer %s", copied.attention, copied.feed_forward)
    ids = initial_draft.initial_vocabulary(spec.vocab_size, target.identity.vocab_size, target.special_tokens)
    return _Beginning(initial_draft.draft_config(target, spec.vocab_size), ids, None)


def _ensure_version_0(
    registry: PodRegistry, target: TargetModel, beginning: _Beginning, folder: Path, now: Callable[[], datetime]
) -> tuple[CheckpointManifest, checkpoint.ExportedCheckpoint]:
    """Register the untrained draft unless version 0 is registered. Returns version 0, whose files are in ``folder``.

    Raises :class:`HeadRefused` when version 0 is another head, or was made for another head.
    """
    origin = beginning.origin
    try:
        stored = registry.fetch_checkpoint(registry.registration(INITIAL_VERSION), folder)
    except ObjectMissing:
        draft = initial_draft.initial_draft(target, beginning.config, beginning.ids)
        exported = checkpoint.export(draft, beginning.ids, folder)
        of_head = {MADE_FOR_HEAD_DIGEST: origin.sha256} if origin else {}
        manifest = _first_manifest(INITIAL_VERSION, exported, of_head, now())
        publish(registry, folder, manifest)
        return manifest, exported
    heads = {stored.provenance.get(key) for key in (MADE_FOR_HEAD_DIGEST, HEAD_DIGEST)}
    if origin is not None and origin.sha256 not in heads:
        raise HeadRefused(
            f"the head {origin.model} changed after version 0 was made for it. Create another AuroraSpeculator"
            " whose draft.initial.revision names a commit"
        )
    return stored, checkpoint.export(*checkpoint.load(folder, target.embedding, beginning.config), folder)


def _ensure_head(registry: PodRegistry, head: ImportedHead, now: Callable[[], datetime]) -> None:
    """Register the head unless it is registered."""
    with tempfile.TemporaryDirectory() as scratch:
        exported = checkpoint.export(head.draft, head.ids, Path(scratch))
        of_head = {HEAD_DIGEST: head.origin.sha256}
        publish(registry, Path(scratch), _first_manifest(HEAD_VERSION, exported, of_head, now()))
    log.info("the head is draft version %d, which the gate measures", HEAD_VERSION)


def _first_manifest(
    version: int, exported: checkpoint.ExportedCheckpoint, of_head: dict[str, str], created: datetime
) -> CheckpointManifest:
    """The manifest of a draft that the lineage begins with. ``of_head``: its provenance, if a head is given."""
    return CheckpointManifest(
        lineage=LINEAGE_NUMBER,
        version=version,
        digest=exported.digest,
        files=exported.files,
        step=0,
        trained_tokens=0,
        provenance=provenance() | of_head,
        created=created,
    )


def publish(
    registry: PodRegistry, folder: Path, manifest: CheckpointManifest, acceptance_length: float | None = None
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


def fetch_draft(registry: PodRegistry, number: int, target: TargetModel) -> tuple[DraftModel, VocabularyMap]:
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
        draft, ids = checkpoint.load(Path(scratch), target.embedding, lineage_config(lineage))
    return draft, VocabularyMap.of(ids, target.identity.vocab_size)


def newest_draft(registry: PodRegistry, target: TargetModel) -> tuple[Registration, tuple[DraftModel, VocabularyMap]]:
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
