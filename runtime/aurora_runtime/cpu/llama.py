"""The forward pass of Llama-shaped targets and EAGLE-3 drafts with little else in it than the arithmetic.

On a CPU, SGLang spends more time around a small model's matrix products than in them: stage boundaries, dispatch
per device, eight operations for a norm. This computes the same layers, from the same modules and weights, in about
fifteen operations each. Only plain models qualify (see `plain`); everything else keeps SGLang's own forward.

Invariant: derived copies of weights live in one object per model that `forget` drops when weights change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from aurora_runtime.cpu import packed
from aurora_runtime.cpu.packed import Packed

_ATTRIBUTE = "_aurora_lean"
_KNOWN = ("sglang.srt.models.llama", "sglang.srt.models.llama_eagle3")


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm: weight [H] in fp32, and epsilon as a scalar tensor."""

    weight: torch.Tensor
    epsilon: torch.Tensor

    @classmethod
    def of(cls, module: Any) -> Norm:
        return cls(module.weight.detach().float(), torch.tensor(float(module.variance_epsilon)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight in fp32, rounded to x's dtype: [T, H] -> [T, H]."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.epsilon, length, length, value=1.0 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's weights, and SGLang's attention module for its KV cache and backend."""

    qkv: Packed
    out: Packed
    gate_up: Packed
    down: Packed
    before_mlp: Norm
    attention: Any
    heads: int
    kv_heads: int
    width: int

    @classmethod
    def of(cls, module: Any) -> Layer:
        attention, mlp = module.self_attn, module.mlp
        return cls(
            packed.pack(attention.qkv_proj.weight),
            packed.pack(attention.o_proj.weight),
            packed.pack(mlp.gate_up_proj.weight),
            packed.pack(mlp.down_proj.weight),
            Norm.of(module.post_attention_layernorm),
            attention.attn,
            attention.num_heads,
            attention.num_kv_heads,
            attention.head_dim,
        )

    def __call__(
        self, normed: torch.Tensor, residual: torch.Tensor, rotation: Rotation, forward_batch: Any
    ) -> torch.Tensor:
        """Attention and MLP with their residual additions.

        Args:
            normed: [T, K] the normalised input of the attention.
            residual: [T, H] what the layer adds to.

        Returns:
            [T, H] the residual stream after the layer.
        """
        tokens = normed.shape[0]
        qkv = packed.linear(normed, self.qkv)
        rotated = (self.heads + self.kv_heads) * self.width
        query_key = rotation(qkv[:, :rotated], self.width)
        mixed = self.attention(
            query_key[:, : self.heads],
            query_key[:, self.heads :],
            qkv[:, rotated:].view(tokens, self.kv_heads, self.width),
            forward_batch,
        )
        residual = packed.linear_add(mixed.view(tokens, self.heads * self.width), self.out, residual)
        gate_up = packed.linear(self.before_mlp(residual), self.gate_up)
        inner = gate_up.shape[1] // 2
        return packed.linear_add(F.silu(gate_up[:, :inner]).mul_(gate_up[:, inner:]), self.down, residual)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding for the positions of one pass: cosines [T, 1, 2, D/2] and signed sines of the same shape."""

    cosine: torch.Tensor
    sine: torch.Tensor

    @classmethod
    def at(cls, cache: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Look up positions [T] in SGLang's cache [max, D] of D/2 cosines and D/2 sines."""
        cosine, sine = cache.index_select(0, positions).to(dtype).chunk(2, dim=-1)
        return cls(torch.stack((cosine, cosine), 1).unsqueeze(1), torch.stack((-sine, sine), 1).unsqueeze(1))

    def __call__(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """Rotate halves (the "neox" style): [T, heads * D] -> [T, heads, D]."""
        halves = x.view(x.shape[0], -1, 2, width // 2)
        return torch.addcmul(halves * self.cosine, halves.flip(2), self.sine).view(x.shape[0], -1, width)


@dataclass(frozen=True, slots=True)
class Target:
    """A target's layers, each with the norm before its attention, and the final norm."""

    layers: tuple[tuple[Norm, Layer], ...]
    final: Norm
    rotary: Any

    @classmethod
    def of(cls, model: Any) -> Target:
        layers = tuple((Norm.of(module.input_layernorm), Layer.of(module)) for module in model.layers)
        return cls(layers, Norm.of(model.norm), model.layers[0].self_attn.rotary_emb)

    def __call__(
        self, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any, capture: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Normalised final states [T, H], and the states [T, H] that enter each of the layers in `capture`."""
        rotation = Rotation.at(self.rotary.cos_sin_cache, positions, hidden.dtype)
        captured = []
        for index, (norm, layer) in enumerate(self.layers):
            if index in capture:
                captured.append(hidden)
            hidden = layer(norm(hidden), hidden, rotation, forward_batch)
        return self.final(hidden), captured


@dataclass(frozen=True, slots=True)
class Draft:
    """A one-layer EAGLE-3 draft (sglang/srt/models/llama_eagle3.py)."""

    fuse: Packed
    fuse_bias: torch.Tensor | None
    layer: Layer
    embedding_norm: Norm
    hidden_norm: Norm
    final: Norm
    rotary: Any
    norm_output: bool

    @classmethod
    def of(cls, model: Any) -> Draft:
        module = model.layers[0]
        return cls(
            packed.pack(model.fc.weight),
            None if model.fc.bias is None else model.fc.bias.detach(),
            Layer.of(module),
            Norm.of(module.input_layernorm),
            Norm.of(module.hidden_norm),
            Norm.of(model.norm),
            module.self_attn.rotary_emb,
            model.norm_output,
        )

    def __call__(
        self, embeds: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States for the head [T, H] and the states that the next draft step takes over.

        Args:
            hidden: [T, 3H] the target's captured states, or [T, H] the draft's own of the step before.
        """
        if hidden.shape[-1] != embeds.shape[-1]:
            hidden = packed.linear(hidden, self.fuse, self.fuse_bias)
        rotation = Rotation.at(self.rotary.cos_sin_cache, positions, embeds.dtype)
        joined = torch.cat((self.embedding_norm(embeds), self.hidden_norm(hidden)), dim=-1)
        state = self.layer(joined, hidden, rotation, forward_batch)
        normed = self.final(state)
        return normed, [normed if self.norm_output else state]


def plain(model: Any) -> bool:
    """Whether every layer of a Llama-shaped model is what `Layer` computes: unquantised, unsharded, no bias or LoRA."""
    return (
        type(model).__module__ in _KNOWN
        and len(model.layers) > 0
        and all(type(module).__module__ in _KNOWN and _plain_layer(module) for module in model.layers)
    )


def _plain_layer(module: Any) -> bool:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    if attention is None or mlp is None:
        return False
    linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    norms = (module.input_layernorm, module.post_attention_layernorm)
    rotary = attention.rotary_emb
    return (
        all(type(linear.quant_method).__name__ == "UnquantizedLinearMethod" for linear in linears)
        and all(linear.bias is None and packed.supported(linear.weight) for linear in linears)
        and not any(hasattr(linear, "set_lora") for linear in linears)
        and all(norm.variance_size_override is None and not norm.fp32_residual for norm in norms)
        and type(rotary).__name__ in ("RotaryEmbedding", "Llama3RotaryEmbedding")
        and rotary.is_neox_style
        and rotary.rotary_dim == rotary.head_size == attention.head_dim
        and attention.attn.qk_head_dim == attention.attn.v_head_dim
    )


def lean_target(model: Any) -> Target | None:
    """The lean form of a target's `LlamaModel`, made once; None where the model is not plain."""
    if _ATTRIBUTE not in model.__dict__:
        qualifies = model.pp_group.world_size == 1 and model.start_layer == 0 and plain(model)
        model.__dict__[_ATTRIBUTE] = Target.of(model) if qualifies else None
    kept: Target | None = model.__dict__[_ATTRIBUTE]
    return kept


def lean_draft(model: Any) -> Draft | None:
    """The lean form of an EAGLE-3 draft's `LlamaModel`, made once; None where the model is not plain."""
    if _ATTRIBUTE not in model.__dict__:
        qualifies = (
            len(model.layers) == 1
            and model.input_norm is None
            and model.fc_norm is None
            and not model.is_mrope_enabled
            and model.layers[0].self_attn.attn.sliding_window_size == -1
            and packed.supported(model.fc.weight)
            and plain(model)
        )
        model.__dict__[_ATTRIBUTE] = Draft.of(model) if qualifies else None
    kept: Draft | None = model.__dict__[_ATTRIBUTE]
    return kept


def forget(model: torch.nn.Module) -> None:
    """Drop everything that was derived from a model's weights, because they changed."""
    packed.forget(model, _ATTRIBUTE)
