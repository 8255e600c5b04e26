"""What the CPU engine does in the place of SGLang's functions; `plugin` says which and checks their signatures.

Each wrapper gets the original first and falls back to it for anything that it was not made for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from aurora_runtime.cpu import attention, llama, packed

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


def forward_decode(
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
    """IntelAMXAttnBackend.forward_decode with one plan for all layers of a pass."""
    if not _ordinary(self, q, layer, sinks):
        result: torch.Tensor = original(self, q, k, v, layer, forward_batch, save_kv_cache, sinks)
        return result
    expanded = self.draft_decode_metadata
    key = self.forward_metadata if expanded is None else expanded
    plan = _kept_plan(self, key)
    if plan is None:
        if expanded is None:
            table, rows = self.req_to_token_pool.req_to_token, forward_batch.req_pool_indices
            lengths = forward_batch.seq_lens
        else:
            table, lengths, rows = expanded
        plan = attention.plan_decode(table, rows, lengths)
        setattr(self, _PLAN, (key, plan))
    return _attend(self, q, k, v, layer, forward_batch, save_kv_cache, plan)


def forward_extend(
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
    """IntelAMXAttnBackend.forward_extend (prefill and verification) with one plan for all layers of a pass."""
    if not _ordinary(self, q, layer, sinks):
        result: torch.Tensor = original(self, q, k, v, layer, forward_batch, save_kv_cache, sinks)
        return result
    key = self.extend_metadata
    plan = _kept_plan(self, key)
    if plan is None:
        lengths, new, starts, tree_mask = key
        table = self.req_to_token_pool.req_to_token
        plan = attention.plan_extend(
            table, forward_batch.req_pool_indices, lengths, new, starts, tree_mask, causal=True
        )
        setattr(self, _PLAN, (key, plan))
    return _attend(self, q, k, v, layer, forward_batch, save_kv_cache, plan)


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


def _kept_plan(backend: Any, key: object) -> attention.Plan | None:
    """The plan made for this very metadata object; SGLang makes a new one for every forward pass."""
    kept = getattr(backend, _PLAN, None)
    return kept[1] if kept is not None and kept[0] is key else None


def _attend(
    backend: Any,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool,
    plan: attention.Plan,
) -> torch.Tensor:
    pool = backend.token_to_kv_pool
    k_buffer, v_buffer = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
    if save_kv_cache and k is not None and v is not None:
        attention.store(k_buffer, v_buffer, forward_batch.out_cache_loc, k, v)
    heads, width = layer.tp_q_head_num, layer.v_head_dim
    output = q.new_empty(q.shape[0], heads * width)
    query = q.reshape(-1, heads, layer.qk_head_dim)
    attention.attend(
        query, k_buffer, v_buffer, output.view(-1, heads, width), plan, layer.scaling, layer.logit_cap or 0.0
    )
    return output


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
