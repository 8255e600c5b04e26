"""What SGLang loads into each of its processes (entry point group `sglang.srt.plugins`) on the CPU engine.

Puts our operations in the place of SGLang's slow ones, for serving with and without speculation alike. Invariants: does
nothing unless the CPU engine serves; either all hooks are registered or, when SGLang's signatures moved, none and an
error says which.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aurora_runtime.cpu.launch_settings import ENGINE_SWITCH
from aurora_runtime.errors import EngineMismatch

_BACKEND = "sglang.srt.layers.attention.intel_amx_backend.IntelAMXAttnBackend"
_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"


@dataclass(frozen=True)
class Hook:
    """A function of SGLang's, the parameters it must have, what wraps it: `around(original, *args, **kwargs)`."""

    target: str
    parameters: tuple[str, ...]
    around: Callable[..., Any]


def hooks() -> tuple[Hook, ...]:
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
        *(Hook(f"{_UPDATER}.{name}", parameters, wrappers.weights_written) for name, parameters in _WRITERS),
    )


_WRITERS = (
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


def check(hook: Hook) -> None:
    """Raise unless SGLang has the hook's target with exactly the parameters that the wrapper was written for.

    Raises:
        EngineMismatch: it moved or changed.
    """
    try:
        target = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError) as error:
        raise EngineMismatch(f"this SGLang has no {hook.target}: {error}") from error
    found = tuple(inspect.signature(target).parameters)
    if found != hook.parameters:
        raise EngineMismatch(f"{hook.target} takes {', '.join(found)}; the hook needs {', '.join(hook.parameters)}")


def install() -> None:
    """Register the CPU engine's hooks with SGLang; does nothing when a GPU serves.

    Raises:
        EngineMismatch: SGLang changed in a place that is hooked. SGLang logs it and serves slowly without any hook.
    """
    if os.environ.get(ENGINE_SWITCH) != "1":
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    wanted = hooks()
    for hook in wanted:
        check(hook)
    for hook in wanted:
        HookRegistry.register(hook.target, hook.around, HookType.AROUND)
