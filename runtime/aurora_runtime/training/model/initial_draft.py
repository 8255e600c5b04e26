"""The first draft of a lineage: the shape and the weights that a target suggests.

Invariant: deterministic. The same target and the same vocabulary size give the same bytes, so that a crash on day 0 is
healed by doing it again.

Where shapes allow, the layer starts as the target's last one and the head as the target's head: with ``fc`` passing the
topmost auxiliary state through, an untrained draft continues the target's own computation. The embedding half of the
attention's inputs starts small and random: the target's layer says nothing about it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.model.draft import DraftConfig, DraftModel
from aurora_runtime.training.model.target import TargetModel

SEED: Final = 20_260_206
_SPREAD: Final = 0.02
_SPECIAL_SHARE: Final = 64
"""At most one draft token in this many is kept for special tokens beyond those among the first ids."""


def draft_config(target: TargetModel, vocab_size: int) -> DraftConfig:
    """A draft like one layer of the target. The rope is the plain one: a draft needs no long-context scaling, and
    SGLang reads the draft's own config."""
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
    """SGLang's default choice (models/llama.py:936: inputs of 2, n/2, n-3) as layers whose output is taken; a target
    too shallow for three distinct ones gets its first, middle and last-but-one."""
    default = (1, layers // 2 - 1, layers - 4)
    if len(set(default)) == 3 and min(default) >= 0:
        return default
    return tuple(sorted({0, max(layers // 2 - 1, 0), max(layers - 2, 0)}))


def vocabulary(size: int, vocab: int, special: tuple[int, ...]) -> Tensor:
    """Target ids of the draft's tokens, ascending ``[size]`` int64: the first ids, because the order of BPE merges is a
    frequency prior that needs no data, and the special tokens, because an answer must be able to end."""
    ids = torch.arange(min(size, vocab), dtype=torch.int64)
    room = max(1, ids.numel() // _SPECIAL_SHARE)
    outside = [i for i in special if i >= ids.numel()][:room]
    if outside:
        inside = set(special)
        free = [i for i in reversed(ids.tolist()) if i not in inside][: len(outside)]
        kept = sorted((set(ids.tolist()) - set(free)) | set(outside))
        ids = torch.tensor(kept, dtype=torch.int64)
    return ids


def initial_draft(target: TargetModel, config: DraftConfig, ids: Tensor) -> DraftModel:
    """The untrained draft; ``ids`` ``[draft_vocab]`` are the target ids of its tokens."""
    generator = torch.Generator().manual_seed(SEED)
    draft = DraftModel(config, target.embedding)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, _SPREAD, generator=generator)
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
