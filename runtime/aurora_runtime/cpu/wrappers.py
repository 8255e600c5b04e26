"""The CPU engine's replacements for SGLang functions. `cpu_plugin` registers them and checks their signatures.

SGLang passes the original function as the first argument. A wrapper calls the original in every case that the
replacement was not written for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from aurora_runtime.cpu import attention_backend, lean_llama, packed_weights

Original = Callable[..., Any]

_PLAN_ATTRIBUTE = "_aurora_plan"
EVICTED_SHARE: Final = 2
"""The prefix cache evicts at least one slot in so many."""


def apply_linear(
    original: Original, self: Any, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """UnquantizedLinearMethod.apply on packed weights: [..., K] -> [..., N]."""
    return packed_weights.module_linear(layer, x, bias)


def compute_head(
    original: Original,
    self: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    embedding_bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """LogitsProcessor._compute_lm_head on packed weights, where the head is a plain matrix: [T, H] -> [T, vocab]."""
    method = type(getattr(lm_head, "quant_method", None)).__name__
    plain = method in ("NoneType", "UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")
    if not plain or hasattr(lm_head, "set_lora") or self.use_fp32_lm_head or self.rl_on_policy_target is not None:
        buffer = {} if out is None else {"out": out}  # SGLang 0.5.22 has no such parameter
        result: torch.Tensor = original(self, hidden_states, lm_head, embedding_bias, **buffer)
        return result
    return packed_weights.module_linear(lm_head, hidden_states.to(lm_head.weight.dtype))


def _attention_method(
    metadata_of: Callable[[Any], object], plan_of: Callable[[Any, Any, int], attention_backend.AttentionPlan]
) -> Callable[..., Any]:
    """Build a replacement for a forward method of IntelAMXAttnBackend that makes one plan for all layers of a pass.

    Args:
        metadata_of: returns the backend's metadata of the current pass. SGLang makes a new metadata object for every
            pass, so the plan stays valid as long as the object is the same.
        plan_of: makes the plan from the backend, the batch and the number of query heads per KV head.
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
        if not _is_plain_attention(self, q, layer, sinks):
            result: torch.Tensor = original(self, q, k, v, layer, forward_batch, save_kv_cache, sinks)
            return result
        metadata = metadata_of(self)
        cached: tuple[object, attention_backend.AttentionPlan] | None = getattr(self, _PLAN_ATTRIBUTE, None)
        if cached is None or cached[0] is not metadata:
            cached = metadata, plan_of(self, forward_batch, layer.tp_q_head_num // layer.tp_k_head_num)
            setattr(self, _PLAN_ATTRIBUTE, cached)
        pool = self.token_to_kv_pool
        k_buffer, v_buffer = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        if save_kv_cache and k is not None and v is not None:
            attention_backend.store_keys_and_values(k_buffer, v_buffer, forward_batch.out_cache_loc, k, v)
        heads, width = layer.tp_q_head_num, layer.v_head_dim
        output = q.new_empty(q.shape[0], heads * width)
        query, rows = q.reshape(-1, heads, layer.qk_head_dim), output.view(-1, heads, width)
        attention_backend.attend(query, k_buffer, v_buffer, rows, cached[1], layer.scaling, layer.logit_cap or 0.0)
        return output

    return forward


def _is_plain_attention(backend: Any, q: torch.Tensor, layer: Any, sinks: torch.Tensor | None) -> bool:
    """Whether a layer is causal self-attention over the whole KV cache, in the cache's own dtype."""
    return (
        not backend.use_mla
        and not backend.use_sliding_window_kv_pool
        and not layer.is_cross_attention
        and layer.attn_type.value == "decoder"
        and layer.sliding_window_size == -1
        and sinks is None
        and backend.token_to_kv_pool.get_key_buffer(layer.layer_id).dtype == q.dtype
    )


def _decode_metadata(backend: Any) -> object:
    """The metadata of a decoding pass. A draft with several branches has a table of its own."""
    branches = backend.draft_decode_metadata
    return backend.forward_metadata if branches is None else branches


def _decode_plan(backend: Any, batch: Any, _: int) -> attention_backend.AttentionPlan:
    if backend.draft_decode_metadata is None:
        table = backend.req_to_token_pool.req_to_token
        return attention_backend.plan_decode(table, batch.req_pool_indices, batch.seq_lens)
    table, lengths, rows = backend.draft_decode_metadata
    return attention_backend.plan_decode(table, rows, lengths)


def _extend_plan(backend: Any, batch: Any, heads_per_kv_head: int) -> attention_backend.AttentionPlan:
    lengths, new, starts, tree_mask = backend.extend_metadata
    table = backend.req_to_token_pool.req_to_token
    return attention_backend.plan_extend(
        table,
        batch.req_pool_indices,
        lengths,
        new,
        starts,
        tree_mask,
        heads_per_kv_head=heads_per_kv_head,
    )


forward_decode = _attention_method(_decode_metadata, _decode_plan)
"""IntelAMXAttnBackend.forward_decode: one token per request, or per branch of a draft."""
forward_extend = _attention_method(lambda backend: backend.extend_metadata, _extend_plan)
"""IntelAMXAttnBackend.forward_extend: prefill and verification."""


def target_forward(
    original: Original,
    self: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    input_embeds: torch.Tensor | None = None,
    pp_proxy_tensors: Any = None,
) -> Any:
    """LlamaModel.forward in its lean form, where the model has one.

    Args:
        input_ids, positions: [T].

    Returns:
        The final states [T, H], and the captured states when layers are captured, as the original returns them.
    """
    lean = None if input_ids.shape[0] == 0 else lean_llama.lean_target(self)
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
    """The EAGLE-3 draft's LlamaModel.forward in its lean form, where the draft has one.

    Args:
        input_ids, positions: [T].

    Returns:
        The states [T, H] for the head, and the states for the next draft step, as the original returns them.
    """
    usable = input_ids.shape[0] > 0 and forward_batch.mm_input_embeds is None
    lean = lean_llama.lean_draft(self) if usable else None
    if lean is None:
        return original(self, input_ids, positions, forward_batch, input_embeds, pp_proxy_tensors)
    embeds = self.embed_tokens(input_ids) if input_embeds is None else input_embeds
    return lean(embeds, forward_batch.spec_info.hidden_states, positions, forward_batch)


def compute_checksum(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """WeightChecker._compute_checksum on a machine without a GPU, for which SGLang 0.5.22 waits all the same.

    SGLang 0.5.23 asks its platform to wait, which does nothing on a CPU.
    """
    gpu = vars(torch.cuda)
    wait = gpu["synchronize"]
    gpu["synchronize"] = lambda *_: None
    try:
        return original(self, *args, **kwargs)
    finally:
        gpu["synchronize"] = wait


def invalidate_derived_weights(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a WeightUpdater method that may write weights, then drop every copy derived from the old weights."""
    try:
        return original(self, *args, **kwargs)
    finally:
        lean_llama.forget(self.get_model())


# Requests that decode together take slots in turn, and SGLang hands slots out in the order in which they became free.
# Soon hardly any token lies behind the token before it, and a CPU prefetches nothing: an engine becomes slower with the
# requests that it answered (tests/unit/cpu/test_kv_locality.py). Two wrappers keep most of the order: free slots are
# sorted, and the prefix cache gives up half of all slots at once, because a few slots have no order.


def sort_free_slots(_result: None, self: Any) -> None:
    """After ``TokenToKVPoolAllocator.clear``, with which each allocator begins: sort what is freed from now on."""
    self.need_sort = True


def evict_many(original: Callable[..., bool | None], self: Any, tree_cache: Any, num_tokens: int) -> bool | None:
    """Around ``BaseTokenToKVPoolAllocator.evict_to_free_tokens``: where something must be evicted, evict more.

    Args:
        num_tokens: slots that must be free.
    """
    free = self.available_size()
    if self.page_size == 1 and num_tokens > free:
        num_tokens = max(num_tokens, free + self.size // EVICTED_SHARE)
    return original(self, tree_cache, num_tokens)
