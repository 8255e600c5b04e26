"""The entry point ``sglang.srt.plugins: aurora_speculation``: hooks the speculation controller into SGLang's worker.

Without ``AURORA_SPECULATION`` in the environment the plugin does nothing. When SGLang is not the one that the hooks
know, the plugin writes its refusal to ``speculation.json`` and raises. SGLang then logs the error and serves without
the controller.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving.pod_files import PodFolder, SpeculationState, write_atomically
from aurora_runtime.sglang_uses import Call, Hook, HookKind, check_all, register
from aurora_runtime.sglang_version import require_sglang

_WORKER: Final = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
_DRAFT_WORKER: Final = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker"
_EAGLE: Final = "sglang.srt.speculative.eagle_utils"
_CONTEXT: Final = "sglang.srt.runtime_context"
_OVERLAP: Final = "sglang.srt.managers.overlap_utils"

CALLS: Final[tuple[Call, ...]] = (
    Call(
        "sglang.srt.speculative.eagle_worker_common.build_eagle_verify_input",
        ("batch", "draft_input", "parent_list", "top_scores_index", "draft_tokens", "draft_probs"),
        ("target_worker", "topk", "num_steps", "num_draft_tokens", "tree_mask_mode", "device"),
    ),
    Call(f"{_EAGLE}.get_draft_recurrent_hidden_state_spec", ("model_runner",)),
    Call(
        "sglang.srt.speculative.eagle_info.EagleDraftInput",
        names=("bonus_tokens", "num_tokens_per_req", "num_tokens_for_logprob_per_req"),
    ),
    Call("sglang.srt.speculative.adaptive_runtime_state.AdaptiveController._activate", ("self", None)),
    Call(f"{_WORKER}._build_trivial_verify_input", ("self", "batch")),
    *(Call(f"{_CONTEXT}.get_{name}") for name in ("context", "exec", "parallel", "schedule", "serving")),
)
"""What the hooks call and read of SGLang."""


def install() -> None:
    """Register the hooks in this process.

    Raises:
        EngineMismatch: this is not an SGLang that the hooks know. ``speculation.json`` holds the reason.
    """
    text = os.environ.get(SPECULATION_VARIABLE)
    if not text:
        return
    settings = SpeculationSettings.from_json(text)
    try:
        require_sglang("the speculation controller")
        check_all(CALLS)
        hooks = worker_hooks(settings)
        check_all(hooks)
    except EngineMismatch as mismatch:
        refuse(settings, str(mismatch))
        raise
    register(hooks)


def refuse(settings: SpeculationSettings, reason: str) -> None:
    """Tell the launcher and the agent that this engine serves without the controller."""
    state = SpeculationState(boot=settings.boot, ok=False, error=reason)
    write_atomically(PodFolder(Path(settings.state_folder)).speculation, state.to_json())


def worker_hooks(settings: SpeculationSettings) -> tuple[Hook, ...]:
    """The hooks that decide and carry out the rounds of this process."""
    from sglang.srt.runtime_context import get_serving

    from aurora_runtime.serving.speculation.controller import Controller, FixedArms
    from aurora_runtime.serving.speculation.hooks import WorkerHooks
    from aurora_runtime.serving.speculation.report import RoundReport

    controller = FixedArms(settings.fixed_arms) if settings.fixed_arms else Controller(settings.arms)
    hooks = WorkerHooks(
        settings,
        controller,
        RoundReport(PodFolder(Path(settings.state_folder)), settings.boot, controller),
        refuse=lambda reason: refuse(settings, reason),
        read_version=lambda: str(get_serving().weight_version),
    )
    around = HookKind.AROUND
    return (
        Hook(f"{_WORKER}.init_cuda_graphs", hooks.around_start, around),
        Hook(f"{_WORKER}.build_adaptive_runtime_state", hooks.around_state, around),
        Hook(f"{_DRAFT_WORKER}.init_attention_backend", hooks.around_draft_side, around),
        Hook(f"{_DRAFT_WORKER}._capture_cuda_graphs", hooks.around_draft_side, around),
        Hook(f"{_WORKER}.forward_batch_generation", hooks.around_forward, around),
        Hook(f"{_WORKER}.activate_step_by_batch", hooks.around_rule, around),
        Hook(f"{_WORKER}.on_verify_complete_cpu", hooks.around_rule, around),
        Hook(f"{_WORKER}.verify", hooks.around_verify, around),
        Hook(f"{_DRAFT_WORKER}.draft", hooks.around_draft, around),
        Hook(f"{_DRAFT_WORKER}._draft_extend_for_prefill", hooks.around_prefill_extend, around),
        Hook(f"{_DRAFT_WORKER}._draft_extend_for_decode", hooks.around_extend, around),
        Hook("sglang.srt.mem_cache.common.release_kv_cache", hooks.around_release, around),
        Hook(f"{_OVERLAP}.decide_needs_cpu_seq_lens", hooks.around_cpu_lengths, around),
        Hook(f"{_OVERLAP}.FutureMap.resolve_seq_lens_cpu", hooks.around_lengths, around),
    )
