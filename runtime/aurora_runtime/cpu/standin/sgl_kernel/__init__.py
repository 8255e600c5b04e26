"""Stands in for SGLang's CPU kernel package, which is published nowhere but imported by name.

Only names: the operations live in `aurora_runtime.cpu`. This directory goes on PYTHONPATH when, and only when, the CPU
engine serves (see `aurora_runtime.cpu.launch_settings`).
"""

from typing import NoReturn

from aurora_runtime.cpu import ops
from aurora_runtime.cpu.slots import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
)
from aurora_runtime.cpu.trees import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu

__all__ = [
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_draft_decode_metadata_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "rotate_input_ids_cpu",
    "verify_tree_greedy_cpu",
]

_registered = ops.register()


def rotate_input_ids_cpu(*_: object) -> NoReturn:
    """Multi-layer EAGLE's operation: SGLang imports the name in every mode, only that mode calls it."""
    raise NotImplementedError("the CPU engine has no multi-layer EAGLE")
