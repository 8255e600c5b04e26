"""What the hooks need of the engine that they run in: its requirements, its states, and a round's results on the host.

The flags of :mod:`aurora_runtime.engine.speculation_flags` fulfil every requirement. A user's own flags may undo them,
and SGLang turns some off with only a warning. So the worker is asked, not the command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.conversations import may_share
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.chat_template import marker_of
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.serving.speculation.worker.rank_agreement import RankAgreement
from aurora_runtime.serving.speculation.worker.request_texts import RequestTexts

SWITCH_LOGGER: Final = "sglang.srt.speculative.eagle_worker_v2"
SKIP_EXTEND_VARIABLE: Final = "SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND"
"""SGLang's variable to leave out the draft in rounds without steps. The hooks then would not see the draft left out."""
_SWITCH_MESSAGE: Final = "Switch adaptive runtime state"
_SWITCH_NOTE: Final = "adaptive_spec.restore"
"""The source of SGLang's notes about switches (``EAGLEWorkerV2.apply_runtime_state``)."""
_FALSE: Final = ("", "0", "false", "n", "no")


GRAPH_SIZES: Final = ((2, None), (4, 64), (8, 32))
"""The largest batch whose rounds of up to so many tokens a request are captured as a CUDA graph. None: all of them."""
WIDEST_GRAPH_SIZE: Final = 16
"""The same for wider rounds. A large batch pays for wide rounds seldom, and then runs them without a graph."""


def graph_sizes(width: int, sizes: Sequence[int]) -> list[int]:
    """Those of SGLang's ``sizes`` of batches that are captured for rounds of ``width`` tokens a request."""
    most = next((most for widest, most in GRAPH_SIZES if width <= widest), WIDEST_GRAPH_SIZE)
    return [size for size in sizes if most is None or size <= most] or [min(sizes)]


@contextlib.contextmanager
def graphs_for(width: int) -> Iterator[None]:
    """Let SGLang capture CUDA graphs for rounds of ``width`` tokens a request, of fewer batch sizes the wider.

    SGLang's own choice by width does not reach the capture: that reads another setting (base_cuda_graph_runner.py:77).
    """
    from sglang.srt.model_executor.cuda_graph_config import Phase, with_phase
    from sglang.srt.runtime_context import get_context, get_exec

    config = get_exec().graph.cuda_graph_config
    if config is None or not config.decode.bs:
        yield
        return
    pruned = with_phase(config, Phase.DECODE, bs=graph_sizes(width, config.decode.bs))
    get_context().override("aurora_speculation.graphs", cuda_graph_config=pruned)
    try:
        yield
    finally:
        get_context().override("aurora_speculation.graphs", cuda_graph_config=config)


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
        return f"{SKIP_EXTEND_VARIABLE} in the environment leaves gaps in the draft's KV cache"
    return None


@dataclass(frozen=True)
class EarlyResults:
    """A round's results on their way to the host, under overlap scheduling: B requests, n nodes each (a chain).

    With overlap the scheduler launches round N+1 before it processes the results of round N, so its requests lack the
    tokens of round N. SGLang waits for the new lengths of round N before the launch, though. The copy was queued in
    front of them, so it has arrived as well, and nobody waits for it.

    Attributes:
        tokens: [B, n] the target's token after each node.
        accept_lens: [B] committed tokens of each request, the target's own included.
        arrived: event after the copies; None when the tensors were on the host from the start.
    """

    tokens: Tensor
    accept_lens: Tensor
    arrived: Any | None

    def committed(self) -> list[list[int]]:
        """The committed tokens of each request."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [row[:count] for row, count in zip(self.tokens.tolist(), self.accept_lens.tolist(), strict=True)]


def start_copy(batch_result: Any) -> EarlyResults:
    """Queue the copies of a verified batch on the current stream."""
    accept_lens: Tensor = batch_result.accept_lens
    tokens: Tensor = batch_result.next_token_ids.view(accept_lens.shape[0], -1)
    if tokens.device.type == "cpu":
        return EarlyResults(tokens, accept_lens, None)
    copies = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in (tokens, accept_lens)
    ]
    arrived = torch.get_device_module(tokens.device).Event()
    arrived.record()
    return EarlyResults(copies[0], copies[1], arrived)


class EngineControl:
    """What the hooks keep about the one worker of their process, once it has started.

    Attributes:
        overlaps: whether a round is launched before the scheduler has processed the one before.
        results: the last decided round's tokens, under overlap scheduling.
    """

    def __init__(self, worker: Any, settings: SpeculationSettings) -> None:
        from sglang.srt.runtime_context import get_schedule

        self.worker = worker
        self.ranks = RankAgreement.of_engine()
        vocabulary = worker.target_worker.model_config.vocab_size
        traffic_key, marker = bytes.fromhex(settings.traffic_key), marker_of(worker)
        index = LookupIndex(
            settings.lookup,
            settings.lookup_tokens,
            vocabulary_size=vocabulary,
            shares=lambda prompt: may_share(prompt, marker, traffic_key),
        )
        self.texts = RequestTexts(index)
        self.overlaps = not get_schedule().disable_overlap_schedule
        self.results: EarlyResults | None = None

    def activate(self, steps: int) -> None:
        """Switch SGLang to its runtime state for ``steps``."""
        from sglang.srt.runtime_context import get_context

        self.worker.adaptive_controller._activate(steps)
        keep_last_note(getattr(get_context(), "_overrides_log", []))


def keep_last_note(notes: list[tuple[str, Any]]) -> None:
    """Remove SGLang's note of the switch before the last one from its ``notes`` of overridden settings.

    SGLang keeps a note of every switch for as long as the process runs (``RuntimeContext.override``), because its own
    rule seldom switches. Here several notes a second would become a hundred megabytes a day. A later note overrides the
    same settings as the one before.
    """
    if len(notes) > 1 and notes[-1][0] == notes[-2][0] == _SWITCH_NOTE:
        del notes[-2]
