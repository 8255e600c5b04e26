"""A lean forward pass of Llama-shaped targets and EAGLE-3 drafts: the arithmetic, with little around it.

On a CPU, SGLang spends more time around a small model's matrix products than in them: stage boundaries, dispatch per
device, eight operations for a norm. This module computes the same layers from the same modules and weights, in about
fifteen operations each. Only plain models qualify (see `is_plain`). Every other model keeps SGLang's own forward pass.

Invariant: the derived copies of a model's weights live in one object, which `forget` drops when weights change.

Few tokens are computed as more rows where that is faster (`packed_weights.RowCounts`). Rows are added once, before the
first layer, and left out of the attention.

Letters in shapes: T tokens, R rows, H hidden size, D head width, K inputs of the attention (H, or 2H in a draft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from aurora_runtime.cpu import packed_weights
from aurora_runtime.cpu.packed_weights import PackedWeight

_LEAN_ATTRIBUTE = "_aurora_lean"
MEASURED_BYTES: Final = 256 << 20
"""Weights with which the number of rows is measured, in bytes. A few milliseconds, and more than a cache holds."""
_KNOWN_MODULES = ("sglang.srt.models.llama", "sglang.srt.models.llama_eagle3")


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMS norm: its weight [H] in fp32, and its epsilon as a scalar tensor."""

    weight: torch.Tensor
    epsilon: torch.Tensor

    @classmethod
    def of(cls, module: Any) -> Norm:
        return cls(module.weight.detach().float(), torch.tensor(float(module.variance_epsilon)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x / sqrt(mean(x^2) + eps) * weight in fp32, rounded to x's dtype: [T, H] -> [T, H]."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.epsilon, norm, norm, value=1.0 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(self.weight).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Heads:
    """The number of query heads and of KV heads of a layer, and their width D."""

    query: int
    kv: int
    width: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's weights.

    `attention` is SGLang's own attention module, which knows the layer's KV cache and its backend.
    """

    qkv: PackedWeight
    out: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight
    mlp_norm: Norm
    attention: Any
    heads: Heads

    @classmethod
    def of(cls, module: Any) -> Layer:
        attention, mlp = module.self_attn, module.mlp
        return cls(
            packed_weights.pack(attention.qkv_proj.weight),
            packed_weights.pack(attention.o_proj.weight),
            packed_weights.pack(mlp.gate_up_proj.weight),
            packed_weights.pack(mlp.down_proj.weight),
            Norm.of(module.post_attention_layernorm),
            attention.attn,
            Heads(attention.num_heads, attention.num_kv_heads, attention.head_dim),
        )

    def __call__(
        self, normed: torch.Tensor, residual: torch.Tensor, rotation: Rotation, forward_batch: Any, tokens: int
    ) -> torch.Tensor:
        """Attention and MLP with their residual additions.

        Args:
            normed: [R, K] the normalised input of the attention.
            residual: [R, H] the residual stream before the layer.
            tokens: T. The rows from T to R are added ones, which the attention leaves out.

        Returns:
            [R, H] the residual stream after the layer.
        """
        rows, heads = normed.shape[0], self.heads
        qkv = packed_weights.linear(normed, self.qkv)[:tokens]
        rotated = (heads.query + heads.kv) * heads.width
        query_key = rotation(qkv[:, :rotated], heads.width)
        mixed = self.attention(
            query_key[:, : heads.query],
            query_key[:, heads.query :],
            qkv[:, rotated:].view(tokens, heads.kv, heads.width),
            forward_batch,
        )
        mixed = packed_weights.with_rows(mixed.view(tokens, heads.query * heads.width), rows)
        residual = packed_weights.linear_add(mixed, self.out, residual)
        gate_up = packed_weights.linear(self.mlp_norm(residual), self.gate_up)
        inner = gate_up.shape[1] // 2
        return packed_weights.linear_add(F.silu(gate_up[:, :inner]).mul_(gate_up[:, inner:]), self.down, residual)


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotary embedding of one pass's positions: cosines and signed sines, [T, 1, 2, D/2] each."""

    cosine: torch.Tensor
    sine: torch.Tensor

    @classmethod
    def at(cls, cache: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Look up `positions` [T] in SGLang's cache [max, D], which holds D/2 cosines and D/2 sines per position."""
        cosine, sine = cache.index_select(0, positions).to(dtype).chunk(2, dim=-1)
        return cls(torch.stack((cosine, cosine), 1).unsqueeze(1), torch.stack((-sine, sine), 1).unsqueeze(1))

    def __call__(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """Rotate each head's two halves against each other ("neox" style): [T, heads * D] -> [T, heads, D]."""
        halves = x.view(x.shape[0], -1, 2, width // 2)
        return torch.addcmul(halves * self.cosine, halves.flip(2), self.sine).view(x.shape[0], -1, width)


@dataclass(frozen=True, slots=True)
class LeanTarget:
    """A target's layers, each with the norm before its attention, and the final norm."""

    layers: tuple[tuple[Norm, Layer], ...]
    final: Norm
    rotary: Any

    @classmethod
    def of(cls, model: Any) -> LeanTarget:
        layers = tuple((Norm.of(module.input_layernorm), Layer.of(module)) for module in model.layers)
        _choose_row_counts([layer.gate_up for _, layer in layers], model.norm.weight)
        return cls(layers, Norm.of(model.norm), model.layers[0].self_attn.rotary_emb)

    def __call__(
        self, hidden: torch.Tensor, positions: torch.Tensor, forward_batch: Any, capture: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the layers.

        Args:
            hidden: [T, H] token embeddings.
            positions: [T].
            capture: numbers of the layers whose input is returned too, for an EAGLE-3 draft.

        Returns:
            The normalised final states [T, H], and the states [T, H] that enter each captured layer.
        """
        tokens = hidden.shape[0]
        rotation = Rotation.at(self.rotary.cos_sin_cache, positions, hidden.dtype)
        hidden = packed_weights.with_rows(hidden, packed_weights.row_counts(tokens))
        captured = []
        for index, (norm, layer) in enumerate(self.layers):
            if index in capture:
                captured.append(hidden[:tokens])
            hidden = layer(norm(hidden), hidden, rotation, forward_batch, tokens)
        return self.final(hidden[:tokens]), captured


@dataclass(frozen=True, slots=True)
class LeanDraft:
    """A one-layer EAGLE-3 draft (sglang/srt/models/llama_eagle3.py).

    `fuse` maps the target's three captured states to one. `norm_output` says which state the next draft step receives:
    the normalised one, or the one before the final norm.
    """

    fuse: PackedWeight
    fuse_bias: torch.Tensor | None
    layer: Layer
    embedding_norm: Norm
    hidden_norm: Norm
    final: Norm
    rotary: Any
    norm_output: bool

    @classmethod
    def of(cls, model: Any) -> LeanDraft:
        module = model.layers[0]
        return cls(
            packed_weights.pack(model.fc.weight),
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
        """Run the draft's layer.

        Args:
            embeds: [T, H] token embeddings.
            hidden: [T, 3H] the target's captured states, or [T, H] the draft's own states of the previous draft step.
            positions: [T].

        Returns:
            The states [T, H] for the head, and the states [T, H] that the next draft step receives.
        """
        tokens = embeds.shape[0]
        rows = packed_weights.row_counts(tokens)
        rotation = Rotation.at(self.rotary.cos_sin_cache, positions, embeds.dtype)
        embeds, hidden = packed_weights.with_rows(embeds, rows), packed_weights.with_rows(hidden, rows)
        if hidden.shape[-1] != embeds.shape[-1]:
            hidden = packed_weights.linear(hidden, self.fuse, self.fuse_bias)
        joined = torch.cat((self.embedding_norm(embeds), self.hidden_norm(hidden)), dim=-1)
        state = self.layer(joined, hidden, rotation, forward_batch, tokens)[:tokens]
        normed = self.final(state)
        return normed, [normed if self.norm_output else state]


def _choose_row_counts(weights: Sequence[PackedWeight], like: torch.Tensor) -> None:
    """Measure products with so many ``weights`` that no cache holds them, for inputs of the type of ``like``."""
    chosen, size = list[PackedWeight](), 0
    for weight in weights:
        if size < MEASURED_BYTES:
            chosen.append(weight)
            size += weight.weight.nbytes

    def compute(rows: int) -> None:
        x = like.new_ones(rows, like.shape[0])
        for weight in chosen:
            packed_weights.linear(x, weight)

    packed_weights.row_counts.measure(compute)


def is_plain(model: Any) -> bool:
    """Whether `Layer` can compute every layer of a model: Llama-shaped, unquantised, without bias or LoRA."""
    return (
        type(model).__module__ in _KNOWN_MODULES
        and len(model.layers) > 0
        and all(type(module).__module__ in _KNOWN_MODULES and _is_plain_layer(module) for module in model.layers)
    )


def _is_plain_layer(module: Any) -> bool:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    if attention is None or mlp is None:
        return False
    linears = (attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj)
    norms = (module.input_layernorm, module.post_attention_layernorm)
    rotary = attention.rotary_emb
    return (
        all(type(linear.quant_method).__name__ == "UnquantizedLinearMethod" for linear in linears)
        and all(linear.bias is None and packed_weights.is_supported(linear.weight) for linear in linears)
        and not any(hasattr(linear, "set_lora") for linear in linears)
        and all(norm.variance_size_override is None and not norm.fp32_residual for norm in norms)
        and type(rotary).__name__ in ("RotaryEmbedding", "Llama3RotaryEmbedding")
        and rotary.is_neox_style
        and rotary.rotary_dim == rotary.head_size == attention.head_dim
        and attention.attn.qk_head_dim == attention.attn.v_head_dim
    )


def lean_target(model: Any) -> LeanTarget | None:
    """The lean form of a target's `LlamaModel`, cached on the model; None unless it is plain and unsharded."""
    if _LEAN_ATTRIBUTE not in model.__dict__:
        qualifies = model.pp_group.world_size == 1 and model.start_layer == 0 and is_plain(model)
        model.__dict__[_LEAN_ATTRIBUTE] = LeanTarget.of(model) if qualifies else None
    lean: LeanTarget | None = model.__dict__[_LEAN_ATTRIBUTE]
    return lean


def lean_draft(model: Any) -> LeanDraft | None:
    """The lean form of an EAGLE-3 draft's `LlamaModel`, cached on the model; None where the model is not plain."""
    if _LEAN_ATTRIBUTE not in model.__dict__:
        qualifies = (
            len(model.layers) == 1
            and model.input_norm is None
            and model.fc_norm is None
            and not model.is_mrope_enabled
            and model.layers[0].self_attn.attn.sliding_window_size == -1
            and packed_weights.is_supported(model.fc.weight)
            and is_plain(model)
        )
        model.__dict__[_LEAN_ATTRIBUTE] = LeanDraft.of(model) if qualifies else None
    lean: LeanDraft | None = model.__dict__[_LEAN_ATTRIBUTE]
    return lean


def forget(model: torch.nn.Module) -> None:
    """Drop every copy derived from a model's weights, because the weights have changed."""
    packed_weights.forget(model, _LEAN_ATTRIBUTE)
