"""The plugin that SGLang loads into each of its processes (entry point group `sglang.srt.plugins`).

It replaces SGLang functions that are slow on a CPU by our own. Serving with and without speculation uses the same
replacements, so that a comparison of the two stays fair. It also has verification sample, which SGLang does on a GPU
only.

Invariants: the plugin does nothing unless the CPU engine serves. It registers all hooks or none: when a signature in
SGLang has changed, it registers none and an error names the function.
"""

from __future__ import annotations

import os
from typing import Final

from aurora_runtime.cpu.launch_settings import ENGINE_SWITCH
from aurora_runtime.sglang_uses import Call, Hook, HookKind, check_all, register

_ALLOCATOR = "sglang.srt.mem_cache.allocator"
_BACKEND = "sglang.srt.layers.attention.intel_amx_backend.IntelAMXAttnBackend"
_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
_VERIFICATION = "sglang.srt.speculative.eagle_utils"
_WEIGHT_WRITERS = (
    *("begin_weight_update", "end_weight_update", "update_weights_from_disk", "load_weights_from_distributed"),
    *("update_weights_from_tensor", "update_weights_from_ipc"),
)
"""Methods of SGLang's WeightUpdater that may write weights."""
CALLS: Final = (
    Call("sglang.srt.layers.sampler.sampling_from_probs_torch", ("probs", "sampling_seed", "positions")),
    Call(
        "sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch",
        ("probs", "top_ks", "top_ps", "min_ps", "need_min_p_sampling", "sampling_seed", "positions"),
        ("max_top_k",),
    ),
)
"""Functions of SGLang that ``sampled_verification`` calls."""


def engine_hooks() -> tuple[Hook, ...]:
    """Every function that the CPU engine wraps."""
    from aurora_runtime.cpu import wrappers
    from aurora_runtime.cpu.sampled_verification import SampledVerification

    around, sampled = HookKind.AROUND, SampledVerification()
    head = "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head"
    linear = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"
    checksum = "sglang.srt.utils.weight_checker.WeightChecker._compute_checksum"
    return (
        Hook(f"{_BACKEND}.forward_decode", wrappers.forward_decode, around),
        Hook(f"{_BACKEND}.forward_extend", wrappers.forward_extend, around),
        Hook(linear, wrappers.apply_linear, around),
        Hook(head, wrappers.compute_head, around, optional=frozenset({"out"})),  # SGLang 0.5.22 has no `out`
        Hook(checksum, wrappers.compute_checksum, around),
        Hook("sglang.srt.models.llama.LlamaModel.forward", wrappers.target_forward, around),
        Hook("sglang.srt.models.llama_eagle3.LlamaModel.forward", wrappers.draft_forward, around),
        Hook(f"{_ALLOCATOR}.token.TokenToKVPoolAllocator.clear", wrappers.sort_free_slots, HookKind.AFTER),
        Hook(f"{_ALLOCATOR}.base.BaseTokenToKVPoolAllocator.evict_to_free_tokens", wrappers.evict_many, around),
        Hook(f"{_VERIFICATION}.eagle_sample", sampled.round_begins, HookKind.BEFORE),
        Hook(f"{_VERIFICATION}.verify_tree_greedy_func", sampled.verify, around),
        *(Hook(f"{_UPDATER}.{name}", wrappers.invalidate_derived_weights, around) for name in _WEIGHT_WRITERS),
    )


def install() -> None:
    """Register the CPU engine's hooks with SGLang. Does nothing when a GPU serves.

    Raises:
        EngineMismatch: a function of SGLang that we hook or call has changed. SGLang logs the error and serves slowly,
            without hooks.
    """
    if os.environ.get(ENGINE_SWITCH) != "1":
        return
    hooks = engine_hooks()
    check_all((*CALLS, *hooks))
    register(hooks)
