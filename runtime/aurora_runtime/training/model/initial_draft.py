"""The initial draft of a lineage: a shape and weights taken from the target.

Invariant: the same target and the same vocabulary size give the same bytes, so that creating a lineage can be repeated
after a crash.

Where shapes allow, the layer starts as the target's last layer and the head as the target's head. ``fc`` passes the
topmost auxiliary state through, so an untrained draft continues the target's own computation. The embedding half of the
attention's inputs starts small and random, because the target's layer has no such half.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.target import TargetModel

SEED: Final = 20_260_206
_INITIAL_STD: Final = 0.02
_TOKENS_PER_SPECIAL_TOKEN: Final = 64
"""At most one draft token in this many is reserved for special tokens that are not among the first ids."""


def draft_config(target: TargetModel, vocab_size: int) -> DraftConfig:
    """The config of a draft that looks like one layer of the target.

    The rope has no long-context scaling: a draft does not need it, and SGLang reads the draft's own config.
    """
    c = target.config
    heads = c["num_attention_heads"]
    layers = c["num_hidden_layers"]
    rope = c.get("rope_parameters") or {}
    return DraftConfig(
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        heads=heads,
        kv_heads=c.get("num_key_value_heads") or heads,
        head_dim=c.get("head_dim") or c["hidden_size"] // heads,
        vocab_size=target.identity.vocab_size,
        draft_vocab_size=min(vocab_size, target.identity.vocab_size),
        rms_norm_eps=c.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or c.get("rope_theta") or 10_000.0),
        max_positions=c.get("max_position_embeddings", 4096),
        aux_layers=aux_layers(layers),
    )


def aux_layers(layers: int) -> tuple[int, ...]:
    """The target layers whose outputs the draft reads.

    SGLang's default is the inputs of layers 2, n/2 and n-3 (models/llama.py:936), so the outputs of the layers before.
    A target too shallow for three distinct layers gets its first, middle and last-but-one layer.
    """
    default = (1, layers // 2 - 1, layers - 4)
    if len(set(default)) == 3 and min(default) >= 0:
        return default
    return tuple(sorted({0, max(layers // 2 - 1, 0), max(layers - 2, 0)}))


def initial_vocabulary(size: int, vocab_size: int, special_tokens: tuple[int, ...]) -> Tensor:
    """Target ids of the draft's tokens, ascending ``[size]`` int64.

    The vocabulary takes the first ids, because the order of BPE merges is a frequency prior that needs no data. It also
    takes the special tokens, because an answer must be able to end.
    """
    ids = torch.arange(min(size, vocab_size), dtype=torch.int64)
    room = max(1, ids.numel() // _TOKENS_PER_SPECIAL_TOKEN)
    outside = [i for i in special_tokens if i >= ids.numel()][:room]
    if outside:
        ordinary = [i for i in reversed(ids.tolist()) if i not in set(special_tokens)]
        kept = (set(ids.tolist()) - set(ordinary[: len(outside)])) | set(outside)
        ids = torch.tensor(sorted(kept), dtype=torch.int64)
    return ids


def initial_draft(target: TargetModel, config: DraftConfig, ids: Tensor) -> DraftModel:
    """The untrained draft of the vocabulary ``ids`` ``[draft_vocab]`` (target ids)."""
    generator = torch.Generator().manual_seed(SEED)
    draft = DraftModel(config, target.embedding)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, _INITIAL_STD, generator=generator)
            source = target.last_layer.get(name.removeprefix("midlayer."))
            if source is None or not name.startswith("midlayer."):
                continue
            if source.shape == parameter.shape:
                parameter.copy_(source)
            elif source.dim() == 2 and source.shape == (parameter.shape[0], config.hidden_size):
                parameter[:, config.hidden_size :].copy_(source)
        layer = draft.midlayer
        source = target.last_layer.get("input_layernorm.weight")
        if source is not None:
            layer.hidden_norm.weight.copy_(source)
        layer.input_layernorm.weight.fill_(1.0)
        draft.norm.weight.copy_(target.norm)
        draft.lm_head.weight.copy_(target.head[ids])
        draft.fc.weight.zero_()
        draft.fc.weight[:, -config.hidden_size :].copy_(torch.eye(config.hidden_size))
    return draft
