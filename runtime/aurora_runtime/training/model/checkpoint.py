"""Writes and reads a draft's checkpoint in the format that SGLang 0.5.23 loads (models/llama_eagle3.py).

Invariants: the same weights give the same bytes, so a checkpoint's digest identifies its weights. Files are
world-readable, because the engine runs as another user and safetensors itself writes mode 0600.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from aurora_protocol.draft_records import CONFIG_FILE, WEIGHTS_FILE, FileRef, TensorSpec
from aurora_runtime.engine.draft_config import DraftConfig, config_from_json, config_json, read_config
from aurora_runtime.errors import CheckpointFormatError, DraftRefused
from aurora_runtime.training.model.draft import DraftModel

D2T, T2D = "d2t", "t2d"
_DTYPES: Final = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


@dataclass(frozen=True)
class ExportedCheckpoint:
    """The files of one checkpoint in a folder."""

    digest: str  # of model.safetensors
    files: tuple[FileRef, ...]
    tensors: dict[str, TensorSpec]


def export(draft: DraftModel, ids: Tensor, folder: Path) -> ExportedCheckpoint:
    """Write ``draft`` in bf16 with its vocabulary map into ``folder``.

    ``ids`` ``[draft_vocab]`` are the target ids of the draft's tokens.
    """
    tensors = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in draft.state_dict().items()}
    tensors[D2T] = ids - torch.arange(ids.numel())
    tensors[T2D] = torch.zeros(draft.config.vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    weights = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    config = json.dumps(config_json(draft.config), indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, weights)):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o644)
        files.append(FileRef(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data)))
    return ExportedCheckpoint(
        digest=files[-1].sha256,
        files=tuple(files),
        tensors={n: TensorSpec(shape=tuple(t.shape), dtype=_DTYPES[t.dtype]) for n, t in sorted(tensors.items())},
    )


def _require_sizes(config: DraftConfig, expected: DraftConfig) -> None:
    if config != replace(expected, draft_vocab_size=config.draft_vocab_size):
        raise CheckpointFormatError(f"{CONFIG_FILE} is not that of a draft of this target")
    if not 0 < config.draft_vocab_size <= config.vocab_size:
        raise CheckpointFormatError(f"{CONFIG_FILE} has an impossible draft_vocab_size")


def load(folder: Path, embedding: Tensor, expected: DraftConfig | None = None) -> tuple[DraftModel, Tensor]:
    """The draft in ``folder`` and the target ids of its tokens ``[draft_vocab]``.

    Args:
        expected: configuration of the lineage's drafts, of which only ``draft_vocab_size`` may differ. None: this
            process wrote the folder.

    Raises :class:`CheckpointFormatError` when fields or tensors are missing, or differ from what is expected.
    """
    try:
        config = config_from_json(read_config(folder / CONFIG_FILE))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (DraftRefused, SafetensorError) as error:
        raise CheckpointFormatError(f"the draft's files cannot be read: {error}") from error
    if expected is not None:
        _require_sizes(config, expected)
    offsets = tensors.pop(D2T, None)
    tensors.pop(T2D, None)
    if offsets is None:
        raise CheckpointFormatError(f"{WEIGHTS_FILE} lacks {D2T}")
    draft = DraftModel(config, embedding)
    try:
        draft.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointFormatError(f"{WEIGHTS_FILE}: {error}") from error
    return draft, offsets + torch.arange(offsets.numel())
