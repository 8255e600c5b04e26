"""The entry point ``sglang.srt.plugins: aurora_capture``: installs redaction, refusals, guard, trace and counter hooks.

When a plugin fails, SGLang only logs the error and serves without the plugin. So this plugin also writes its refusal to
``capture.json``. The launcher reads the reason there, because it waits for a captured probe request before the pod is
ready. Without ``AURORA_CAPTURE`` in the environment the plugin does nothing, so that the package may be installed
beside any SGLang.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import protection
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, CaptureSettings
from aurora_runtime.serving.pod_files import CaptureState, PodFolder, write_atomically
from aurora_runtime.sglang_uses import Call, Hook, HookKind, check_all, register
from aurora_runtime.sglang_version import require_sglang

SAMPLE_FUNCTION: Final = "sglang.srt.speculative.eagle_utils.eagle_sample"
PREFILL_FUNCTION: Final = "sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2._forward_prefill_batch"
RELEASE_FUNCTION: Final = "sglang.srt.mem_cache.common.release_kv_cache"
CALLS: Final = (
    Call("sglang.srt.managers.auxiliary_output.append_auxiliary_output", ("current", "output")),
    Call("sglang.srt.runtime_context.get_parallel"),
    Call("sglang.srt.runtime_context.get_serving"),
)
"""The functions of SGLang that trace capture calls."""


def request_hooks(settings: CaptureSettings) -> tuple[Hook, ...]:
    """The hooks that protect the engine, its keys and its measurements."""
    return (
        Hook(protection.VALIDATE_FUNCTION, protection.before_validation, HookKind.BEFORE),
        Hook(protection.AUTHENTICATION_FUNCTION, protection.guard_hook(settings), HookKind.AFTER),
        Hook(protection.SECRETS_FUNCTION, protection.after_redaction, HookKind.AFTER),
        Hook(protection.COMMAND_LINE_FUNCTION, protection.after_redaction, HookKind.AFTER),
    )


def trace_hooks(settings: CaptureSettings) -> tuple[Hook, ...]:
    """The hooks that keep the tensors of traced requests, and count the requests of clients."""
    from sglang.srt.managers.auxiliary_output import append_auxiliary_output
    from sglang.srt.runtime_context import get_parallel, get_serving

    from aurora_runtime.serving.capture.hooks import CaptureHooks

    hooks = CaptureHooks(
        settings,
        append_output=append_auxiliary_output,
        read_rank=lambda: int(get_parallel().tp_rank),
        read_version=lambda: str(get_serving().weight_version),
    )
    return (
        Hook(SAMPLE_FUNCTION, hooks.after_sample, HookKind.AFTER),
        Hook(PREFILL_FUNCTION, hooks.around_prefill, HookKind.AROUND),
        Hook(RELEASE_FUNCTION, hooks.before_release, HookKind.BEFORE),
    )


def install() -> None:
    """Register the hooks in this process.

    Raises:
        EngineMismatch: this is not an SGLang that the hooks know. ``capture.json`` holds the reason.
    """
    text = os.environ.get(CAPTURE_VARIABLE)
    if not text:
        return
    protection.hide_client_texts()
    settings = CaptureSettings.from_json(text)
    protecting = request_hooks(settings)
    register(protecting)
    try:
        require_sglang("trace capture")
        check_all((*CALLS, *protecting))
        hooks = trace_hooks(settings)
        check_all(hooks)
    except EngineMismatch as mismatch:
        state = CaptureState(boot=settings.boot, ok=False, error=str(mismatch))
        write_atomically(PodFolder(Path(settings.state_folder)).capture, state.to_json())
        raise
    register(hooks)
