"""The parts of the target that the trainer needs: its identity, its vocabulary and what an initial draft copies.

Invariant: the model itself is never loaded. Only the needed files are fetched and only the needed tensors are read, so
that a trainer pod fits beside a target many times its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.draft_records import TargetIdentity
from aurora_runtime.errors import TargetUnavailable, UnreadableWeight
from aurora_runtime.models.files import CONFIG_FILE, GENERATION_FILE, TOKENIZER_FILE, ModelFiles
from aurora_runtime.models.target_config import TargetConfig, read_target_config, text_config
from aurora_runtime.training.target.families import Family, family_of
from aurora_runtime.training.target.last_layer import CopiedLayer, copy_last_layer
from aurora_runtime.training.target.quantised_weights import read_weight, weight_block

_EMBEDDING = "embed_tokens.weight"
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_TENSOR_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


@dataclass(frozen=True)
class TargetModel:
    """A target's identity, its sizes, and the tensors that an initial draft copies."""

    identity: TargetIdentity
    family: Family
    config: TargetConfig
    special_tokens: tuple[int, ...]  # the tokens that end answers come first
    embedding: Tensor  # [vocab, H]
    head: Tensor  # [vocab, H]; the same as embedding when the two are tied
    norm: Tensor  # [H]; the factor itself
    last_layer: CopiedLayer


def load_target(target: TargetSpec) -> TargetModel:
    """Read ``target`` from a directory, or fetch its needed files from the Hugging Face hub.

    Raises :class:`TargetUnavailable` when files or tensors are missing, or the hub cannot be reached.
    """
    files = ModelFiles(target.model, target.revision)
    raw = files.read_object(CONFIG_FILE)
    config = read_target_config(raw, target.model)
    family = family_of(config.architectures)
    # Before the weights are fetched: see files.py.
    generation = files.read_object(GENERATION_FILE) if files.has(GENERATION_FILE) else {}
    names = files.tensor_files
    prefix = next((p for p in _TENSOR_PREFIXES if p + _EMBEDDING in names), None)
    if prefix is None:
        raise TargetUnavailable(f"{target.model}: no tensor is named *{_EMBEDDING}")
    read = partial(_read, files, weight_block(text_config(raw)) or weight_block(raw))
    embedding = read(prefix + _EMBEDDING)
    head_name = next((name for name in _HEADS if name in names), None)
    layer = f"{prefix}layers.{config.layers - 1}."
    return TargetModel(
        identity=TargetIdentity(
            model=target.model,
            revision=target.revision,
            config_sha256=hashlib.sha256(files.read(CONFIG_FILE)).hexdigest(),
            tokenizer_sha256=hashlib.sha256(files.read(TOKENIZER_FILE)).hexdigest(),
            hidden_size=config.hidden_size,
            vocab_size=embedding.shape[0],
        ),
        family=family,
        config=config,
        special_tokens=tuple(_special_tokens(text_config(raw), generation, files, embedding.shape[0])),
        embedding=embedding,
        head=embedding if head_name is None else read(head_name),
        norm=read(f"{prefix}norm.weight").float() + family.norm_offset,
        last_layer=copy_last_layer(
            {name.removeprefix(layer) for name in names if name.startswith(layer)},
            lambda name: read(layer + name),
            config,
            family,
        ),
    )


def _read(files: ModelFiles, block: tuple[int, int] | None, name: str) -> Tensor:
    """The tensor ``name`` as the target computes with it: a quantised weight is multiplied by its scale.

    Raises :class:`UnreadableWeight` for a form that is not known.
    """
    try:
        return read_weight(name, files.tensor_files, files.tensor, block)
    except ValueError as error:
        raise UnreadableWeight(f"{files.name}: {error}") from error


def _special_tokens(
    config: dict[str, Any], generation: dict[str, Any], files: ModelFiles, vocab_size: int
) -> Iterator[int]:
    ends = [source.get(key) for source in (generation, config) for key in ("eos_token_id", "bos_token_id")]
    flat = [i for end in ends for i in (end if isinstance(end, list) else [end]) if isinstance(i, int)]
    added = files.read_object(TOKENIZER_FILE).get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    flat += [token["id"] for token in tokens if token.get("special") and isinstance(token.get("id"), int)]
    return (i for i in dict.fromkeys(flat) if 0 <= i < vocab_size)
