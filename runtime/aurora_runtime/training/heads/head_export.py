"""Writes a registered draft into a folder that stock SGLang, or vLLM's speculators, load.

Invariants: only a draft that an engine of its lineage would load is published. The command has no key, so it verifies
neither the channel nor evidence. The card says that evidence is not verified. The weights and the vocabulary map are
those of the stored version, bit for bit. Nothing of the store's place or of its credentials gets into the folder.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_protocol.draft_records import CONFIG_FILE, DRAFT_FILES, WEIGHTS_FILE, Lineage
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_runtime.engine.draft_config import DraftConfig, config_from_json, config_json, read_config
from aurora_runtime.engine.draft_file_check import check_draft, max_weights_bytes
from aurora_runtime.errors import CheckpointFormatError
from aurora_runtime.models.head_config import LAYER_IDS, SPECULATORS_TYPE
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.heads.model_card import PublishedVersion, model_card
from aurora_store import Keys
from aurora_store.errors import StoreError

CARD_FILE: Final = "README.md"
_LAYER_FIELDS: Final = (
    "model_type",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "partial_rotary_factor",
)
"""The fields of our own ``config.json`` that are the Llama config of the draft's layer."""


class HeadFormat(StrEnum):
    """Who loads the folder."""

    SGLANG = "sglang"
    SPECULATORS = "speculators"


def export_head(
    registry: PodRegistry,
    version: int,
    folder: Path,
    head_format: HeadFormat,
    steps: int,
    embedding: Tensor | None = None,
    digest: str | None = None,
) -> None:
    """Write ``version`` with its model card into the new or empty ``folder``.

    Args:
        steps: tokens that the card and the config suggest to propose in a row.
        embedding: the target's ``[vocab, H]``, to be stored beside a speculators head. None: engines share the
            target's.
        digest: the digest of the weights that the channel names. None: the channel names none.

    Raises :class:`InvalidRecord` when ``version`` is registered with another ``digest``,
    :class:`CheckpointFormatError` when the store has no lineage, :class:`FileExistsError` when the folder holds
    files, and what :meth:`PodRegistry.fetch_checkpoint` and :func:`check_draft` raise.
    """
    lineage = registry.lineage()
    if lineage is None:
        raise CheckpointFormatError("the store has no lineage, so there is no draft to export")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files already; name a new folder")
    registration = registry.registration(version)
    if digest not in (None, registration.digest):
        raise InvalidRecord(
            f"{Keys.registration(version)} names other weights than the channel does; find out who wrote it"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        stored = Path(scratch)
        manifest = registry.fetch_checkpoint(registration, stored, max_weights_bytes=max_weights_bytes(lineage))
        check_draft(stored, lineage)
        if head_format is HeadFormat.SGLANG:
            for name in DRAFT_FILES:
                shutil.copyfile(stored / name, folder / name)
        else:
            _write_speculators(stored, folder, lineage, steps, embedding)
    published = PublishedVersion(lineage, registration, manifest, _evidence(registry, version), steps)
    (folder / CARD_FILE).write_text(model_card(published))


def _evidence(registry: PodRegistry, version: int) -> Evidence | None:
    """The last measurement of ``version``. None: not measured, or these credentials do not read evidence."""
    try:
        return registry.evidence(version)
    except (StoreError, InvalidRecord):
        return None


def _write_speculators(stored: Path, folder: Path, lineage: Lineage, steps: int, embedding: Tensor | None) -> None:
    config = config_from_json(read_config(stored / CONFIG_FILE))
    content = speculators_config(config, lineage.target.model, steps)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=1))
    tensors = dict(_speculators_tensors(load_file(stored / WEIGHTS_FILE)))
    if config.draft_vocab_size == config.vocab_size:
        del tensors["d2t"], tensors["t2d"]  # speculators keep no map of a whole vocabulary
    if embedding is not None:
        tensors["embed_tokens.weight"] = embedding.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(0o644)


def _speculators_tensors(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name.replace("midlayer.", "layers.0.", 1), tensor


def speculators_config(config: DraftConfig, target: str, steps: int) -> dict[str, Any]:
    """The ``config.json`` of speculators (Eagle3SpeculatorConfig, read by speculators 0.9 and by vLLM)."""
    plain = config_json(config)
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": steps,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": SPECULATORS_TYPE,
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": SPECULATORS_TYPE,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": target, "architectures": []},
        },
        "transformer_layer_config": {name: plain[name] for name in _LAYER_FIELDS if name in plain}
        | {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
        "draft_vocab_size": config.draft_vocab_size,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "target_hidden_size": None,
        # Speculators name the layers whose inputs the head reads.
        LAYER_IDS: [layer + 1 for layer in config.aux_layers],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
