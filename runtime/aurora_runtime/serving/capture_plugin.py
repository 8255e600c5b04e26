"""The entry point ``sglang.srt.plugins: aurora_capture``: checks what it hooks, refuses loudly, then hooks.

SGLang only logs a plugin that fails, and serves without it. So a refusal is also written to ``capture.json``, where the
launcher, which demands a captured probe before the pod is ready, finds the reason. Without ``AURORA_CAPTURE`` in the
environment nothing is done: the package may be installed beside any SGLang.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from aurora_runtime.engine import SGLANG_VERSION
from aurora_runtime.errors import CaptureRefused
from aurora_runtime.serving.pod_files import (
    CAPTURE_VARIABLE,
    CaptureSettings,
    CaptureState,
    PodFolder,
    write_atomically,
)

SAMPLE: Final = "sglang.srt.speculative.eagle_utils:eagle_sample"
PREFILL: Final = "sglang.srt.speculative.eagle_worker_v2:EAGLEWorkerV2._forward_prefill_batch"
SIGNATURES: Final = {
    SAMPLE: (
        "verify_input",
        "batch",
        "logits_output",
        "grammar_mask",
        "uno_target_max_top_k",
        "watermark_state",
        "watermark_full_mask",
    ),
    PREFILL: ("self", "batch", "on_publish", "pp_proxy_tensors", "coordination_plan"),
}
"""Parameters, in order, of the functions hooked, as of SGLang 0.5.23."""


def _resolve(target: str) -> Callable[..., Any]:
    module, _, path = target.partition(":")
    found: Callable[..., Any] = operator.attrgetter(path)(importlib.import_module(module))
    return found


def check() -> None:
    """Raise :class:`CaptureRefused` unless this is the SGLang whose internals the hooks know."""
    found = version_of("sglang")
    if found != SGLANG_VERSION:
        raise CaptureRefused(f"SGLang {found} is installed; capture knows {SGLANG_VERSION}")
    for target, expected in SIGNATURES.items():
        try:
            parameters = tuple(inspect.signature(_resolve(target)).parameters)
        except (ImportError, AttributeError) as error:
            raise CaptureRefused(f"{target} cannot be had: {error}") from error
        if parameters != expected:
            raise CaptureRefused(f"{target} takes {parameters}, expected {expected}")


def install() -> None:
    """Register the hooks in this process.

    Raises:
        CaptureRefused: SGLang is not what the hooks know; ``capture.json`` says why.
    """
    text = os.environ.get(CAPTURE_VARIABLE)
    if not text:
        return
    settings = CaptureSettings.from_json(text)
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from aurora_runtime.serving import log_redaction, measurement_guard

    HookRegistry.register(measurement_guard.AUTHENTICATION, measurement_guard.install(settings), HookType.AFTER)
    HookRegistry.register(log_redaction.SECRETS, log_redaction.after_secrets, HookType.AFTER)
    HookRegistry.register(log_redaction.COMMAND_LINE, log_redaction.after_command_line, HookType.AFTER)
    if not settings.hooks:
        return
    try:
        check()
    except CaptureRefused as refusal:
        state = CaptureState(boot=settings.boot, ok=False, error=str(refusal), updated=datetime.now(UTC))
        write_atomically(PodFolder(Path(settings.state)).capture, state.to_json())
        raise
    from sglang.srt.managers.auxiliary_output import append_auxiliary_output
    from sglang.srt.runtime_context import get_parallel, get_serving

    from aurora_runtime.serving.capture.hooks import Hooks

    hooks = Hooks(
        settings,
        append=append_auxiliary_output,
        rank=lambda: int(get_parallel().tp_rank),
        version=lambda: str(get_serving().weight_version),
    )
    HookRegistry.register(SAMPLE.replace(":", "."), hooks.after_sample, HookType.AFTER)
    HookRegistry.register(PREFILL.replace(":", "."), hooks.around_prefill, HookType.AROUND)
