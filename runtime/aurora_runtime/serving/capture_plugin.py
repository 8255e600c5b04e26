"""The entry point ``sglang.srt.plugins: aurora_capture``: installs redaction, request limits, guard and trace hooks.

When a plugin fails, SGLang only logs the error and serves without the plugin. So this plugin also writes its refusal to
``capture.json``. The launcher reads the reason there, because it waits for a captured probe request before the pod is
ready. Without ``AURORA_CAPTURE`` in the environment the plugin does nothing, so that the package may be installed
beside any SGLang.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, CaptureSettings
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.serving.pod_records import CaptureState
from aurora_runtime.serving.request_limits import LIMITED_PARAMETERS
from aurora_runtime.sglang_version import require_parameters, require_sglang

SAMPLE_FUNCTION: Final = "sglang.srt.speculative.eagle_utils.eagle_sample"
PREFILL_FUNCTION: Final = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2._forward_prefill_batch"
HOOKED_PARAMETERS: Final = {
    SAMPLE_FUNCTION: (
        "verify_input",
        "batch",
        "logits_output",
        "grammar_mask",
        "uno_target_max_top_k",
        "watermark_state",
        "watermark_full_mask",
    ),
    PREFILL_FUNCTION: ("self", "batch", "on_publish", "pp_proxy_tensors", "coordination_plan"),
    **LIMITED_PARAMETERS,
}
"""The parameters, in order, of each function whose hook captures traces or limits requests, in SGLang 0.5.23."""


def check_sglang() -> None:
    """Raise :class:`EngineMismatch` unless this is the SGLang whose internals the hooks know."""
    require_sglang("trace capture")
    for target, parameters in HOOKED_PARAMETERS.items():
        require_parameters(target, parameters)


def install() -> None:
    """Register the hooks in this process.

    Raises:
        EngineMismatch: this is not the SGLang that the hooks know. ``capture.json`` holds the reason.
    """
    text = os.environ.get(CAPTURE_VARIABLE)
    if not text:
        return
    settings = CaptureSettings.from_json(text)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from aurora_runtime.serving import log_redaction, measurement_guard, request_limits

    HookRegistry.register(request_limits.VALIDATE_FUNCTION, request_limits.before_validation, HookType.BEFORE)
    answers, body = request_limits.answers_hook(settings.max_answers), request_limits.body_hook(settings.max_body_bytes)
    HookRegistry.register(request_limits.BATCH_FUNCTION, answers, HookType.BEFORE)
    HookRegistry.register(measurement_guard.AUTHENTICATION_FUNCTION, body, HookType.AFTER)
    HookRegistry.register(
        measurement_guard.AUTHENTICATION_FUNCTION, measurement_guard.guard_hook(settings), HookType.AFTER
    )
    HookRegistry.register(log_redaction.SECRETS_FUNCTION, log_redaction.after_secrets, HookType.AFTER)
    HookRegistry.register(log_redaction.COMMAND_LINE_FUNCTION, log_redaction.after_command_line, HookType.AFTER)
    if settings.trace:
        _install_trace_hooks(settings)


def _install_trace_hooks(settings: CaptureSettings) -> None:
    try:
        check_sglang()
    except EngineMismatch as mismatch:
        state = CaptureState(boot=settings.boot, ok=False, error=str(mismatch), updated_at=datetime.now(UTC))
        write_atomically(PodFolder(Path(settings.state_folder)).capture, state.to_json())
        raise
    from sglang.srt.managers.auxiliary_output import append_auxiliary_output
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.runtime_context import get_parallel, get_serving

    from aurora_runtime.serving.capture.hooks import Hooks

    hooks = Hooks(
        settings,
        append_output=append_auxiliary_output,
        read_rank=lambda: int(get_parallel().tp_rank),
        read_version=lambda: str(get_serving().weight_version),
    )
    HookRegistry.register(SAMPLE_FUNCTION, hooks.after_sample, HookType.AFTER)
    HookRegistry.register(PREFILL_FUNCTION, hooks.around_prefill, HookType.AROUND)
