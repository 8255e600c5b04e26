"""What the CPU engine does in the place of SGLang's functions; `plugin` says which and checks their signatures.

Each wrapper gets the original first and falls back to it for anything that it was not made for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from aurora_runtime.cpu import attention_backend, llama, packed

Original = Callable[..., Any]

_PLAN = "_aurora_plan"


def apply_linear(
    original: Original, self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """UnquantizedLinearMethod.apply on packed weights."""
    return packed.module_linear(layer, x, bias)


def compute_head(
    original: Original,
    self: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    embedding_bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """LogitsProcessor._compute_lm_head on packed weights, where the head is a plain matrix."""
    method = type(getattr(lm_head, "quant_method", None)).__name__
    plain = method in ("NoneType", "UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")
    if not plain or hasattr(lm_head, "set_lora") or self.use_fp32_lm_head or self.rl_on_policy_target is not None:
        result: torch.Tensor = original(self, hidden_states, lm_head, embedding_bias, out=out)
        return result
    return packed.module_linear(lm_head, hidden_states.to(lm_head.weight.dtype))


def _forward(
    key_of: Callable[[Any], object], plan_of: Callable[[Any, Any, int], attention_backend.Plan]
) -> Callable[..., Any]:
    """A method of IntelAMXAttnBackend with one plan for all layers of a pass.

    Args:
        key_of: the backend's metadata of this pass: SGLang makes a new object for every pass, so the plan is kept as
            long as the object is the same.
        plan_of: makes the plan from the backend, the batch, and how many query heads share a KV head.
    """

    def forward(
        original: Original,
        self: Any,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if not _ordinary(self, q, layer, sinks):
            result: torch.Tensor = original(self, q, k, v, layer, forward_batch, save_kv_cache, sinks)
            return result
        key = key_of(self)
        kept: tuple[object, attention_backend.Plan] | None = getattr(self, _PLAN, None)
        if kept is None or kept[0] is not key:
            kept = key, plan_of(self, forward_batch, layer.tp_q_head_num // layer.tp_k_head_num)
            setattr(self, _PLAN, kept)
        pool = self.token_to_kv_pool
        k_buffer, v_buffer = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        if save_kv_cache and k is not None and v is not None:
            attention_backend.store(k_buffer, v_buffer, forward_batch.out_cache_loc, k, v)
        heads, width = layer.tp_q_head_num, layer.v_head_dim
        output = q.new_empty(q.shape[0], heads * width)
        query, rows = q.reshape(-1, heads, layer.qk_head_dim), output.view(-1, heads, width)
        attention_backend.attend(query, k_buffer, v_buffer, rows, kept[1], layer.scaling, layer.logit_cap or 0.0)
        return output

    return forward


def _ordinary(backend: Any, q: torch.Tensor, layer: Any, sinks: torch.Tensor | None) -> bool:
    return (
        not backend.use_mla
        and not backend.use_sliding_window_kv_pool
        and not layer.is_cross_attention
        and layer.attn_type.value == "decoder"
        and layer.sliding_window_size == -1
        and sinks is None
        and backend.token_to_kv_pool.get_key_buffer(layer.layer_id).dtype == q.dtype
    )


def _decode_key(backend: Any) -> object:
    expanded = backend.draft_decode_metadata
    return backend.forward_metadata if expanded is None else expanded


def _decode_plan(backend: Any, batch: Any, _: int) -> attention_backend.Plan:
    if backend.draft_decode_metadata is None:
        table = backend.req_to_token_pool.req_to_token
        return attention_backend.plan_decode(table, batch.req_pool_indices, batch.seq_lens)
    table, lengths, rows = backend.draft_decode_metadata
    return attention_backend.plan_decode(table, rows, lengths)


def _extend_plan(backend: Any, batch: Any, fold: int) -> attention_backend.Plan:
    lengths, new, starts, tree_mask = backend.extend_metadata
    table = backend.req_to_token_pool.req_to_token
    return attention_backend.plan_extend(
        table, batch.req_pool_indices, lengths, new, starts, tree_mask, fold=fold, causal=True
    )


forward_decode = _forward(_decode_key, _decode_plan)
forward_extend = _forward(lambda backend: backend.extend_metadata, _extend_plan)
"""Prefill and verification."""


def target_forward(
    original: Original,
    self: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    input_embeds: torch.Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """LlamaModel.forward in its lean form, where the model has one."""
    lean = None if input_ids.shape[0] == 0 else llama.lean_target(self)
    if lean is None:
        return original(self, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    hidden = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
    final, captured = lean(hidden, positions, forward_batch, self.layers_to_capture)
    return (final, captured) if captured else final


def draft_forward(
    original: Original,
    self: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    input_embeds: torch.Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """The EAGLE-3 draft's LlamaModel.forward in its lean form, where the draft has one."""
    usable = input_ids.shape[0] > 0 and forward_batch.mm_input_embeds is None
    lean = llama.lean_draft(self) if usable else None
    if lean is None:
        return original(self, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    embeds = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
    return lean(embeds, forward_batch.spec_info.hidden_states, positions, forward_batch)


def weights_written(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Any method of WeightUpdater that may write weights: afterwards nothing derived from the old ones is left."""
    try:
        return original(self, *args, **kwargs)
    finally:
        llama.forget(self.get_model())
