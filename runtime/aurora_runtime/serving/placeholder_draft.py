"""The placeholder: the draft that an engine starts with while the pod has none. It guesses nothing, and is never run.

SGLang builds its states for a draft once, at its start, and cannot get one later. A swap then replaces the placeholder.

Invariants: only local knowledge and the models' ``config.json`` are needed, neither the store nor the trainer. Every
weight is zero, so the file is sparse and takes no space. The sizes are those that the trainer would give the lineage's
drafts. A lineage may still differ: the head's files could not be read here, or the target's weights have another number
of tokens than its configuration. Then no swap succeeds, and the pod has to start again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from aurora_protocol.draft_records import (
    CONFIG_FILE,
    LINEAGE_NUMBER,
    WEIGHTS_FILE,
    CheckpointManifest,
    FileRef,
    Lineage,
    TensorSpec,
)
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.pod_settings import ServingSettings
from aurora_runtime.engine.draft_config import DraftConfig, config_json, lineage_config
from aurora_runtime.engine.draft_file_check import DTYPE_BYTES, INVERSE_MAP
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.errors import HeadRefused, TargetUnavailable
from aurora_runtime.models.draft_sizes import default_draft_config, draft_tensors
from aurora_runtime.models.files import ModelFiles
from aurora_runtime.models.head_config import TargetSizes, head_config
from aurora_runtime.models.head_files import HeadFiles
from aurora_runtime.models.target_config import read_target_config, vocabulary_size
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)


def ensure_draft(folder: PodFolder, settings: ServingSettings) -> None:
    """Make a placeholder the draft that the engine starts with, unless the pod has a draft.

    A placeholder of an earlier start is made again: more may be known by now. Raises :class:`TargetUnavailable` when
    the target's ``config.json`` is missing or cannot be used.
    """
    if _has_draft(folder):
        return
    config = placeholder_config(folder, settings)
    part = folder.drafts / f".placeholder.{secrets.token_hex(4)}"
    part.mkdir(parents=True)
    files = write_placeholder(part, config)
    manifest = CheckpointManifest(
        lineage=LINEAGE_NUMBER,
        version=PLACEHOLDER_VERSION,
        digest=files[-1].sha256,
        files=files,
        step=0,
        trained_tokens=0,
        created=datetime.now(UTC).replace(microsecond=0),
    )
    (part / MANIFEST).write_bytes(manifest.to_json())
    part.chmod(0o755)
    draft = folder.draft(manifest.version, manifest.digest)
    shutil.rmtree(draft, ignore_errors=True)
    part.rename(draft)
    folder.make_current(draft)
    log.warning("there is no draft yet: the engine starts with a placeholder, which is never run")


def _has_draft(folder: PodFolder) -> bool:
    try:
        manifest = CheckpointManifest.from_json((folder.current / MANIFEST).read_bytes())
    except (OSError, InvalidRecord):
        return False
    return manifest.version != PLACEHOLDER_VERSION


def placeholder_config(folder: PodFolder, settings: ServingSettings) -> DraftConfig:
    """The configuration of the lineage's drafts, as far as it is known here.

    It is certain once the pod has the lineage's record. Else it follows from the published head that the lineage will
    begin with, or from the target. Raises :class:`TargetUnavailable`.
    """
    with contextlib.suppress(FileNotFoundError, InvalidRecord):
        return lineage_config(Lineage.from_json(folder.lineage.read_bytes()))
    name, initial = settings.target.model, settings.draft.initial
    raw = ModelFiles(name, settings.target.revision).read_object(CONFIG_FILE)
    target, tokens = read_target_config(raw, name), vocabulary_size(raw, name)
    if initial is not None:
        sizes = TargetSizes(target.hidden_size, tokens, target.layers, target.max_positions)
        try:
            return head_config(initial.model, HeadFiles(initial).config(), sizes).draft
        except (HeadRefused, TargetUnavailable) as error:
            log.warning("the head's sizes are not known here: %s", error)
    return default_draft_config(target, tokens, settings.draft.vocab_size)


def write_placeholder(folder: Path, config: DraftConfig) -> tuple[FileRef, ...]:
    """Write the files of a draft of ``config`` whose weights are zero. Its vocabulary is the target's first tokens."""
    (folder / CONFIG_FILE).write_text(json.dumps(config_json(config), indent=1))
    _write_zeros(folder / WEIGHTS_FILE, draft_tensors(config), config.draft_vocab_size)
    paths = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    return tuple(FileRef(name=path.name, sha256=sha256_file(path), size=path.stat().st_size) for path in paths)


def _write_zeros(path: Path, tensors: dict[str, TensorSpec], vocabulary: int) -> None:
    """Write a safetensors file of zeros, but for the mask of the ``vocabulary`` first tokens.

    In the map ``d2t``, zeros mean that draft token ``i`` is the target's token ``i``.
    """
    header, end, mask = {}, 0, 0
    for name, spec in tensors.items():
        begin, end = end, end + DTYPE_BYTES[spec.dtype] * prod(spec.shape)
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (begin, end)}
        mask = begin if name == INVERSE_MAP else mask
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        file.seek(start + mask)
        file.write(b"\1" * vocabulary)
