"""The entry point ``sglang.srt.plugins: aurora_speculation``: hooks the speculation controller into SGLang's worker.

Without ``AURORA_SPECULATION`` in the environment the plugin does nothing. When SGLang is not the one that the hooks
know, the plugin writes its refusal to ``speculation.json`` and raises. SGLang then logs the error and serves without
the controller.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.serving.pod_records import SpeculationState
from aurora_runtime.sglang_version import require_parameters, require_sglang

_WORKER: Final = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2"
_DRAFT_WORKER: Final = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker"

HOOKED_PARAMETERS: Final = {
    f"{_WORKER}.init_cuda_graphs": ("self",),
    f"{_WORKER}.forward_batch_generation": ("self", "batch", "on_publish", "grammar_barrier", "pp_proxy_tensors"),
    f"{_WORKER}.activate_step_by_batch": ("self", "batch_size"),
    f"{_WORKER}.on_verify_complete_cpu": ("self", "num_correct_drafts_per_req", "batch_size"),
    f"{_WORKER}.verify": ("self", "batch", "pp_proxy_tensors", "grammar_barrier"),
    f"{_DRAFT_WORKER}.draft": ("self", "batch", "with_topology"),
    f"{_DRAFT_WORKER}._draft_extend_for_decode": ("self", "batch", "batch_result", "kv_loc_plan"),
    "sglang.srt.mem_cache.common.release_kv_cache": ("req", "tree_cache", "checkpoint"),
    "sglang.srt.managers.overlap_utils.decide_needs_cpu_seq_lens": ("attn_backends",),
}
"""The parameters, in order, of each hooked function of SGLang 0.5.23."""


def check_sglang() -> None:
    """Raise :class:`EngineMismatch` unless this is the SGLang whose internals the hooks know."""
    require_sglang("the speculation controller")
    for target, parameters in HOOKED_PARAMETERS.items():
        require_parameters(target, parameters)


def install() -> None:
    """Register the hooks in this process.

    Raises:
        EngineMismatch: this is not the SGLang that the hooks know. ``speculation.json`` holds the reason.
    """
    text = os.environ.get(SPECULATION_VARIABLE)
    if not text:
        return
    settings = SpeculationSettings.from_json(text)
    try:
        check_sglang()
    except EngineMismatch as mismatch:
        refuse(settings, str(mismatch))
        raise
    _install_hooks(settings)


def refuse(settings: SpeculationSettings, reason: str) -> None:
    """Tell the launcher and the agent that this engine serves without the controller."""
    state = SpeculationState(boot=settings.boot, ok=False, error=reason, written_at=datetime.now(UTC))
    write_atomically(PodFolder(Path(settings.state_folder)).speculation, state.to_json())


def _install_hooks(settings: SpeculationSettings) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.runtime_context import get_serving

    from aurora_runtime.serving.speculation.controller import Controller, ControllerSettings
    from aurora_runtime.serving.speculation.worker.hooks import WorkerHooks
    from aurora_runtime.serving.speculation.worker.policy import FixedArms, Policy
    from aurora_runtime.serving.speculation.worker.round_report import RoundReport

    policy: Policy
    if settings.fixed_arms:
        policy = FixedArms(settings.fixed_arms)
    else:
        policy = Controller(settings.arms, ControllerSettings(), random.Random(settings.boot))  # noqa: S311 - no secret
    longest = max(arm.steps for arm in settings.arms)
    hooks = WorkerHooks(
        settings,
        policy,
        RoundReport(PodFolder(Path(settings.state_folder)), settings.boot, policy, longest),
        refuse=lambda reason: refuse(settings, reason),
        read_version=lambda: str(get_serving().weight_version),
    )
    replacements = (
        hooks.around_start,
        hooks.around_forward,
        hooks.around_activate,
        hooks.around_verify_complete,
        hooks.around_verify,
        hooks.around_draft,
        hooks.around_extend,
        hooks.around_release,
        hooks.around_cpu_lengths,
    )
    for target, hook in zip(HOOKED_PARAMETERS, replacements, strict=True):
        HookRegistry.register(target, hook, HookType.AROUND)
