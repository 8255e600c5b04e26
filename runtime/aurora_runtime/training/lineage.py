"""Creates the lineage with its initial draft, version 0, so that serving can start before any traffic.

Version 0 is made from the target's weights, or is the published head that ``draft.initial`` names.

Invariant: wherever the lineage's record exists, version 0 exists too. The order is checkpoint, registration, lineage. A
crash in between is repaired by running this again: the same target or head gives the same bytes, and a draft that is
already registered is kept. A published head is read only until the lineage exists.
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

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.draft_records import (
    INITIAL_VERSION,
    LINEAGE_NUMBER,
    CheckpointManifest,
    InitialHead,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_config import lineage_config
from aurora_runtime.engine.draft_file_check import check_draft, max_weights_bytes
from aurora_runtime.errors import CheckpointFormatError, DraftRefused, HeadRefused
from aurora_runtime.training.heads.published_head import read_head
from aurora_runtime.training.model import checkpoint, initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.families import require_family
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import Keys, Registry
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing

HEAD_DIGEST: Final = "initial_sha256"
"""Key in the provenance of version 0: the digest of the published head that it is."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _InitialDraft:
    """What version 0 is, or shall be."""

    draft: DraftModel
    ids: torch.Tensor  # [draft_vocab]: the target ids of the draft's tokens
    origin: InitialHead | None  # None: made from the target

    @property
    def provenance(self) -> dict[str, str]:
        return provenance() | ({HEAD_DIGEST: self.origin.sha256} if self.origin else {})


def open_lineage(registry: Registry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    """The store's lineage, created with its version 0 when there is none. Safe to repeat after any failure.

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


def _create(registry: Registry, target: TargetModel, spec: DraftSpec, now: Callable[[], datetime]) -> Lineage:
    require_family(target.family, target.config.architectures, target.identity.model)
    with tempfile.TemporaryDirectory() as scratch:
        initial, exported = _ensure_version_0(registry, target, spec, Path(scratch), now)
    config = initial.draft.config
    lineage = Lineage(
        number=LINEAGE_NUMBER,
        target=target.identity,
        architecture=spec.architecture,
        draft_vocab_size=config.draft_vocab_size,
        aux_layers=config.aux_layers,
        tensors=exported.tensors,
        draft_sizes=config.sizes,
        initial=initial.origin,
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


def _ensure_version_0(
    registry: Registry, target: TargetModel, spec: DraftSpec, folder: Path, now: Callable[[], datetime]
) -> tuple[_InitialDraft, checkpoint.ExportedCheckpoint]:
    """Register the initial draft unless version 0 is registered; returns version 0 and its files."""
    try:
        stored = registry.fetch_checkpoint(registry.registration(INITIAL_VERSION), folder)
    except ObjectMissing:
        initial = _new_draft(target, spec)
        exported = checkpoint.export(initial.draft, initial.ids, folder)
        manifest = CheckpointManifest(
            lineage=LINEAGE_NUMBER,
            version=INITIAL_VERSION,
            digest=exported.digest,
            files=exported.files,
            step=0,
            trained_tokens=0,
            provenance=initial.provenance,
            created=now(),
        )
        publish(registry, folder, manifest)
        return initial, exported
    initial = _stored_draft(target, spec, folder, stored)
    return initial, checkpoint.export(initial.draft, initial.ids, folder)


def _new_draft(target: TargetModel, spec: DraftSpec) -> _InitialDraft:
    """The initial draft."""
    if spec.initial is not None:
        head = read_head(spec.initial, target)
        log.info("the lineage starts from the head %s, sha256 %s", spec.initial.model, head.origin.sha256)
        return _InitialDraft(head.draft, head.ids, head.origin)
    copied = target.last_layer
    log.info("of the target's last layer: attention %s; feed-forward layer %s", copied.attention, copied.feed_forward)
    config = initial_draft.draft_config(target, spec.vocab_size)
    ids = initial_draft.initial_vocabulary(spec.vocab_size, target.identity.vocab_size, target.special_tokens)
    return _InitialDraft(initial_draft.initial_draft(target, config, ids), ids, None)


def _stored_draft(target: TargetModel, spec: DraftSpec, folder: Path, manifest: CheckpointManifest) -> _InitialDraft:
    """Version 0 in ``folder``, registered by a run that ended before it created the lineage."""
    if spec.initial is None:
        expected = initial_draft.draft_config(target, spec.vocab_size)
        return _InitialDraft(*checkpoint.load(folder, target.embedding, expected), origin=None)
    head = read_head(spec.initial, target)
    if manifest.provenance.get(HEAD_DIGEST) != head.origin.sha256:
        raise HeadRefused(
            f"the head {spec.initial.model} changed after version 0 was made from it. Create another AuroraSpeculator"
            " whose draft.initial.revision names a commit"
        )
    return _InitialDraft(*checkpoint.load(folder, target.embedding, head.draft.config), origin=head.origin)


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
        draft, ids = checkpoint.load(Path(scratch), target.embedding, lineage_config(lineage))
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
