"""The plugin that SGLang loads into each of its processes (entry point group `sglang.srt.plugins`).

It replaces SGLang functions that are slow on a CPU by our own. Serving with and without speculation uses the same
replacements, so that a comparison of the two stays fair.

Invariants: the plugin does nothing unless the CPU engine serves. It registers all hooks or none: when a signature in
SGLang has changed, it registers none and an error names the function.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aurora_runtime.cpu.launch_settings import ENGINE_SWITCH
from aurora_runtime.sglang_version import require_parameters

_BACKEND = "sglang.srt.layers.attention.intel_amx_backend.IntelAMXAttnBackend"
_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"


@dataclass(frozen=True)
class Hook:
    """One SGLang function and its wrapper.

    Attributes:
        target: the function's dotted name.
        parameters: the parameter names that the function must have.
        wrapper: called in the function's place as `wrapper(original, *args, **kwargs)`.
    """

    target: str
    parameters: tuple[str, ...]
    wrapper: Callable[..., Any]


def engine_hooks() -> tuple[Hook, ...]:
    """Every function that the CPU engine wraps."""
    from aurora_runtime.cpu import wrappers

    attention = ("self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache", "sinks")
    model = ("self", "input_ids", "positions", "forward_batch", "input_embeds", "pp_proxy_tensors")
    return (
        Hook(f"{_BACKEND}.forward_decode", attention, wrappers.forward_decode),
        Hook(f"{_BACKEND}.forward_extend", attention, wrappers.forward_extend),
        Hook(
            "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply",
            ("self", "layer", "x", "bias"),
            wrappers.apply_linear,
        ),
        Hook(
            "sglang.srt.layers.logits_processor.LogitsProcessor._compute_lm_head",
            ("self", "hidden_states", "lm_head", "embedding_bias", "out"),
            wrappers.compute_head,
        ),
        Hook("sglang.srt.models.llama.LlamaModel.forward", model, wrappers.target_forward),
        Hook("sglang.srt.models.llama_eagle3.LlamaModel.forward", model, wrappers.draft_forward),
        *(
            Hook(f"{_UPDATER}.{name}", parameters, wrappers.invalidate_derived_weights)
            for name, parameters in _WEIGHT_WRITERS
        ),
    )


_WEIGHT_WRITERS = (
    ("begin_weight_update", ("self",)),
    ("end_weight_update", ("self", "run_post_load")),
    (
        "update_weights_from_disk",
        ("self", "model_path", "load_format", "weight_name_filter", "recapture_cuda_graph"),
    ),
    ("load_weights_from_distributed", ("self", "named_tensors")),
    ("update_weights_from_tensor", ("self", "named_tensors", "load_format")),
    ("update_weights_from_ipc", ("self", "recv_req")),
)
"""Methods of SGLang's WeightUpdater that may write weights, with their parameters."""


def install() -> None:
    """Register the CPU engine's hooks with SGLang. Does nothing when a GPU serves.

    Raises:
        EngineMismatch: a hooked SGLang function has changed. SGLang logs the error and serves slowly, without hooks.
    """
    if os.environ.get(ENGINE_SWITCH) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    hooks = engine_hooks()
    for hook in hooks:
        require_parameters(hook.target, hook.parameters)
    for hook in hooks:
        HookRegistry.register(hook.target, hook.wrapper, HookType.AROUND)
