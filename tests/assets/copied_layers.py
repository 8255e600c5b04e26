"""How closely does an initial draft's layer compute what the target's last layer computes?

The draft's layer sees the input of the target's last layer, and no embedding. The reference is transformers' forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.initial_draft import draft_config, initial_draft
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.assets.tiny_targets import VOCAB

TOKENS = 24


@dataclass(frozen=True)
class LayerErrors:
    """Differences between the draft's layer and the target's, as shares of what the target's half adds to its input.

    0 is the same, and 1 is a half that adds nothing. ``head`` is the largest difference of a logit, absolute.
    """

    attention: float
    feed_forward: float
    head: float


def initial_draft_of(folder: Path) -> tuple[TargetModel, DraftModel]:
    target = load_target(TargetSpec(model=str(folder)))
    return target, initial_draft(target, draft_config(target, VOCAB), torch.arange(VOCAB))


@torch.no_grad()
def layer_errors(model: transformers.PreTrainedModel, draft: DraftModel) -> LayerErrors:
    """Compare ``draft`` with the last layer of ``model`` on one random text."""
    seen: dict[str, Tensor] = {}
    layer, norm = model.model.layers[-1], model.model.norm

    def record(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            seen[f"{name} input"] = inputs[0] if inputs else named["hidden_states"]
            seen[f"{name} output"] = output[0] if isinstance(output, tuple) else output

        return hook

    parts = {"layer": layer, "attention": layer.self_attn, "feed forward": _feed_forward(layer), "norm": norm}
    hooks = [part.register_forward_hook(record(name), with_kwargs=True) for name, part in parts.items()]
    tokens = torch.randint(0, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(5))
    logits = model(tokens).logits
    for hook in hooks:
        hook.remove()
    return LayerErrors(
        attention=_share(_attention(draft, seen["layer input"]), seen["attention output"]),
        feed_forward=_share(
            draft.midlayer.mlp(draft.midlayer.post_attention_layernorm(_middle(seen))), seen["feed forward output"]
        ),
        head=float((draft.logits(seen["norm input"]) - logits).abs().max()),
    )


def _feed_forward(layer: Any) -> Any:
    return layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe


def _middle(seen: dict[str, Tensor]) -> Tensor:
    return seen["layer input"] + seen["attention output"]


def _attention(draft: DraftModel, hidden: Tensor) -> Tensor:
    """What the draft's attention adds to ``hidden`` ``[1, T, H]`` when the embedding half of its inputs is zero."""
    normed = draft.midlayer.hidden_norm(hidden)
    attended = _attended(draft, torch.cat([torch.zeros_like(normed), normed], dim=-1))
    added: Tensor = draft.midlayer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
    return added


def _attended(draft: DraftModel, inputs: Tensor) -> Tensor:
    """Causal attention over ``inputs`` ``[B, T, 2H]`` -> ``[B, heads, T, D]``."""
    positions = torch.arange(inputs.shape[1])[None].expand(inputs.shape[0], -1)
    groups = draft.config.heads // draft.config.kv_heads
    return functional.scaled_dot_product_attention(
        draft.queries(inputs, positions),
        draft.keys(inputs, positions).repeat_interleave(groups, 1),
        draft.values(inputs).repeat_interleave(groups, 1),
        is_causal=True,
    )


def _share(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
