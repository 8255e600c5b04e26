"""Stands in for SGLang's CPU kernel package `sgl_kernel`, which SGLang imports by name but which is not published.

This package only forwards names; `aurora_runtime.cpu` holds the operations. Its folder is on PYTHONPATH only while the
CPU engine serves (see `aurora_runtime.cpu.launch_settings`).
"""

from typing import NoReturn

from aurora_runtime.cpu.attention_backend import register_operations
from aurora_runtime.cpu.draft_trees import build_tree_kernel_efficient_cpu, verify_tree_greedy_cpu
from aurora_runtime.cpu.kv_slots import (
    assign_draft_cache_locs_contiguous_cpu,
    assign_extend_cache_locs_cpu,
    assign_req_to_token_pool_cpu,
    build_draft_decode_metadata_cpu,
    copy_all_layer_kv_cache_cpu,
    fill_accept_out_cache_loc_cpu,
    fill_bonus_tokens_cpu,
)

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

register_operations()


def rotate_input_ids_cpu(*_: object) -> NoReturn:
    """An operation of multi-layer EAGLE. SGLang imports the name in every mode and calls it only in that one."""
    raise NotImplementedError("the CPU engine does not support multi-layer EAGLE; use a one-layer EAGLE-3 draft")
