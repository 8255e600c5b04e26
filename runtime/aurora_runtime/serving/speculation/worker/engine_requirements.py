"""What the worker hooks need from the engine that they run in, checked once at its start.

The flags of :mod:`aurora_runtime.engine.speculation_flags` fulfil every requirement. A user's own flags may undo them,
and SGLang turns some off with only a warning. So the worker is asked, not the command line.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import torch

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.worker.pending_tokens import BufferShape, PendingTokens

log = logging.getLogger(__name__)

SWITCH_LOGGER: Final = "sglang.srt.speculative.eagle_worker_v2"
SKIP_EXTEND_VARIABLE: Final = "SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND"
"""SGLang's variable to leave out the draft in rounds without steps. The hooks then would not see these rounds end."""
_SWITCH_MESSAGE: Final = "Switch adaptive runtime state"
_FALSE: Final = ("", "0", "false", "n", "no")


def is_no_switch(record: logging.LogRecord) -> bool:
    """A filter for :data:`SWITCH_LOGGER`: SGLang logs every change of the runtime state, here several a second."""
    return not record.getMessage().startswith(_SWITCH_MESSAGE)


def obstacle_to_control(worker: Any, settings: SpeculationSettings) -> str | None:
    """Why rounds of this EAGLE-3 worker cannot be controlled; None when they can."""
    from sglang.srt.runtime_context import get_parallel, get_schedule, get_spec

    schedule, spec, parallel = get_schedule(), get_spec(), get_parallel()
    if worker.adaptive_controller is None:
        return "SGLang has turned --speculative-adaptive off (its log says why)"
    missing = sorted({arm.steps for arm in settings.arms} - set(worker.adaptive_controller.candidate_steps))
    if missing:
        return f"--speculative-adaptive-config lacks the steps {', '.join(map(str, missing))}"
    if schedule.enable_mixed_chunk:
        return "--enable-mixed-chunk decodes tokens in prefill batches, which the draft would miss"
    if spec.speculative_use_rejection_sampling:
        return "--speculative-use-rejection-sampling needs the draft's probabilities, which lookup does not have"
    if parallel.pp_size > 1:
        return "with pipeline parallelism the last stage drafts ahead of the decision"
    if os.environ.get(SKIP_EXTEND_VARIABLE, "").strip().lower() not in _FALSE:
        return f"{SKIP_EXTEND_VARIABLE} in the environment leaves gaps in the draft's KV cache that nobody fills"
    return buffer_shape(worker, settings).obstacle


def is_overlapping() -> bool:
    """Whether SGLang launches a batch before it has processed the results of the one before."""
    from sglang.srt.runtime_context import get_schedule

    return not get_schedule().disable_overlap_schedule


def buffer_shape(worker: Any, settings: SpeculationSettings) -> BufferShape:
    """The shape of the buffer for the pending tokens of this worker's draft."""
    from sglang.srt.speculative.eagle_utils import get_draft_input_from_target_hidden_dim

    draft_worker = worker.draft_worker
    return BufferShape(
        rows=draft_worker.req_to_token_pool.req_to_token.shape[0],
        widest=max(arm.width for arm in settings.arms),
        width=get_draft_input_from_target_hidden_dim(draft_worker.draft_runner),
        dtype=draft_worker.draft_runner.model_config.dtype,
        budget_bytes=settings.pending_bytes,
    )


def pending_buffer(worker: Any, settings: SpeculationSettings) -> PendingTokens:
    """The buffer for the pending tokens of this worker's draft.

    Raises :class:`RuntimeError` when the device has too little free memory.
    """
    shape = buffer_shape(worker, settings)
    try:
        buffer = PendingTokens(shape, worker.draft_worker.device)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"{shape.bytes / 1e9:.2f} GB for the tokens that wait for the draft are not free on the device. Lower "
            "serving.maxRunningRequests, or SGLang's own share of the memory with --mem-fraction-static in "
            "serving.extraArgs"
        ) from error
    log.info(
        "aurora speculation: %d tokens may wait for the draft in %.2f GB, at most %d tokens of one request, or %d of"
        " each when all wait",
        buffer.slots,
        buffer.bytes / 1e9,
        shape.request_slots,
        buffer.tokens_for_each_request,
    )
    return buffer
