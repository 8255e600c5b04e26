"""The initial draft of a lineage: a shape and weights taken from the target.

Invariant: the same target and the same vocabulary size give the same bytes, so that creating a lineage can be repeated
after a crash.

The layer starts as the target's last layer where it can (:mod:`~aurora_runtime.training.target.last_layer`), and the
head as the target's head. ``fc`` passes the topmost auxiliary state through, so an untrained draft continues the
target's own computation. The embedding half of the attention's inputs starts small and random, because the target's
layer has no such half. A sublayer that cannot be copied starts with an output projection of zeros: it adds nothing to
its input until training moves it. The sizes may be those of a published head: then a sublayer whose sizes, or whose
rope, differ from the target's is not copied either.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.models.draft_sizes import default_draft_config
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.target.last_layer import INPUT_NORM
from aurora_runtime.training.target.target_model import TargetModel

SEED: Final = 20_260_206
_INITIAL_STD: Final = 0.02
_ATTENTION_INPUTS: Final = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_DOWN: Final = "mlp.down_proj.weight"
_OUTPUTS: Final = ("self_attn.o_proj.weight", _DOWN)
_ATTENTION_FIELDS: Final = ("heads", "kv_heads", "head_dim", "rotary_dim", "rope_theta", "rope_scaling")
"""Fields of a config that decide what the attention's weights compute."""
_TOKENS_PER_SPECIAL_TOKEN: Final = 64
"""At most one draft token in this many is reserved for special tokens that are not among the first ids."""


def draft_config(target: TargetModel, vocab_size: int) -> DraftConfig:
    """The config of the drafts of a lineage without a published head, with at most ``vocab_size`` tokens."""
    return default_draft_config(target.config, target.identity.vocab_size, vocab_size)


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
    copied = _copied(target, config)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, _INITIAL_STD, generator=generator)
            if name.startswith("midlayer."):
                _start(name.removeprefix("midlayer."), parameter, copied, config.hidden_size)
        layer = draft.midlayer
        if INPUT_NORM in copied:
            layer.hidden_norm.weight.copy_(copied[INPUT_NORM])
        layer.input_layernorm.weight.fill_(1.0)
        draft.norm.weight.copy_(target.norm)
        draft.lm_head.weight.copy_(target.head[ids])
        draft.fc.weight.zero_()
        draft.fc.weight[:, -config.hidden_size :].copy_(torch.eye(config.hidden_size))
    return draft


def _copied(target: TargetModel, config: DraftConfig) -> dict[str, Tensor]:
    """The tensors of the target's last layer that a draft with this ``config`` takes over, by name."""
    of_target = draft_config(target, config.draft_vocab_size)
    tensors = target.last_layer.tensors
    excluded: tuple[str, ...] = ()
    if any(getattr(config, field) != getattr(of_target, field) for field in _ATTENTION_FIELDS):
        excluded += ("self_attn.",)
    if _DOWN in tensors and tensors[_DOWN].shape[1] > config.intermediate_size:
        excluded += ("mlp.",)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(excluded)}


def _start(name: str, parameter: Tensor, copied: dict[str, Tensor], hidden_size: int) -> None:
    """Overwrite the parameter ``name`` of the layer, which is random, with the part that is copied of the target."""
    source = copied.get(name)
    if name in _OUTPUTS and (source is None or source.shape != parameter.shape):
        parameter.zero_()  # a shared expert is narrower than the draft's layer: the other columns add nothing
    if source is None:
        return
    if name in _ATTENTION_INPUTS:
        parameter[:, hidden_size:].copy_(source)
    else:
        parameter[tuple(slice(size) for size in source.shape)].copy_(source)
