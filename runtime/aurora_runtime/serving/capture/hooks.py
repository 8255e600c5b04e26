"""The two hooks that run inside SGLang's scheduler and clone the tensors of traced batches.

Invariants: a hook never raises and never blocks. A hook does nothing for a batch without traced requests. Only
tensor-parallel rank 0 captures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import torch

from aurora_runtime.serving.capture.batch_outputs import (
    CaptureSink,
    PromptOutput,
    VerifyOutput,
    count_error,
    select_rows,
    to_trace_dtype,
)
from aurora_runtime.serving.capture.request_filter import RequestFilter, TracedRequest
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.capture.shard_writer import ShardWriter
from aurora_runtime.serving.capture.top_tokens import top_tokens
from aurora_runtime.traces import ProposalSource


def proposal_sources(verify_input: Any, batch_size: int, traced: Sequence[TracedRequest]) -> tuple[ProposalSource, ...]:
    """Who proposed the nodes of each traced request.

    The worker of the speculation controller leaves a source for each request of the batch on SGLang's verify input. A
    server without the controller leaves none, and its draft proposes every node below a root.

    Raises :class:`LookupError` when there is not one source for each request.
    """
    if verify_input.draft_token_num == 1:
        return (ProposalSource.NONE,) * len(traced)
    chosen = getattr(verify_input, "aurora_sources", None)
    if chosen is None:
        return (ProposalSource.DRAFT,) * len(traced)
    if len(chosen) != batch_size:
        raise LookupError("the batch has another number of requests than of sources")
    return tuple(ProposalSource[chosen[request.index].name] for request in traced)


class Hooks:
    """The two hooks of one process. The writer thread starts with the first batch on rank 0.

    Args:
        append_output: SGLang's ``append_auxiliary_output``.
        read_rank: returns this process's tensor-parallel rank.
        read_version: returns the weight version in force.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        *,
        append_output: Callable[[Any, Any], Any],
        read_rank: Callable[[], int],
        read_version: Callable[[], str],
    ) -> None:
        self._top_tokens = settings.top_tokens
        self._append_output = append_output
        self._read_rank = read_rank
        self._read_version = read_version
        self._sink = CaptureSink(ShardWriter(settings), RequestFilter(Decimal(settings.sample_ratio)))
        self._started = False

    def _traced_requests(self, batch: Any) -> tuple[TracedRequest, ...]:
        if batch.forward_mode.is_idle() or self._read_rank() != 0:
            return ()
        if not self._started:
            self._started = True
            self._sink.writer.start()
        return self._sink.request_filter.traced(batch.reqs)

    def after_sample(self, result: Any, verify_input: Any, batch: Any, logits_output: Any, *_: Any, **__: Any) -> None:
        """Runs after ``eagle_sample``, when the verify round is decided and its tree is not yet compacted."""
        try:
            traced = self._traced_requests(batch)
            if traced:
                output = self._clone_verify_round(traced, result, verify_input, batch, logits_output)
                logits_output.auxiliary_device_output = self._append_output(
                    logits_output.auxiliary_device_output, output
                )
        except Exception:  # SGLang does not catch
            count_error(self._sink.writer)

    def _clone_verify_round(
        self, traced: tuple[TracedRequest, ...], result: Any, verify_input: Any, batch: Any, logits_output: Any
    ) -> VerifyOutput:
        _, accept_lens, accept_index = result
        size, nodes = len(batch.reqs), verify_input.draft_token_num
        path = accept_index.reshape(size, -1).long()
        states = logits_output.hidden_states.index_select(0, path.clamp(min=0).reshape(-1))
        offsets = torch.arange(size, device=path.device).unsqueeze(1) * nodes
        logits = select_rows(logits_output.next_token_logits, size, traced).flatten(0, 1)
        ids, logprobs, uncaptured_mass = top_tokens(logits, self._top_tokens)
        shape = (len(traced), nodes)
        version = self._read_version()
        return VerifyOutput(
            sink=self._sink,
            traced=traced,
            version=int(version) if version.isdecimal() else -1,
            sources=proposal_sources(verify_input, size, traced),
            draft_tokens=select_rows(verify_input.draft_token, size, traced),
            next_token=select_rows(verify_input.retrieve_next_token.reshape(-1), size, traced),
            next_sibling=select_rows(verify_input.retrieve_next_sibling.reshape(-1), size, traced),
            path=select_rows((path - offsets).reshape(-1), size, traced),
            path_length=select_rows(accept_lens, size, traced).reshape(-1),
            hidden=to_trace_dtype(select_rows(states, size, traced)),
            top_ids=ids.reshape(*shape, -1),
            top_logprobs=logprobs.reshape(*shape, -1),
            uncaptured_mass=uncaptured_mass.reshape(shape),
        )

    def around_prefill(self, original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs around ``EAGLEWorkerV2._forward_prefill_batch``: reads lengths before it and hidden states after it."""
        traced: tuple[TracedRequest, ...] = ()
        starts: list[int] = []
        lengths: list[int] = []
        try:
            traced = self._traced_requests(batch)
            if traced:
                starts, lengths = list(batch.prefix_lens), list(batch.extend_lens)
        except Exception:  # SGLang does not catch
            traced = ()
            count_error(self._sink.writer)
        result = original(worker, batch, *args, **kwargs)
        try:
            logits_output = result.logits_output
            if traced and logits_output is not None and logits_output.hidden_states is not None:
                parts = logits_output.hidden_states[: sum(lengths)].split(lengths)
                output = PromptOutput(
                    sink=self._sink,
                    traced=traced,
                    starts=tuple(starts[request.index] for request in traced),
                    hidden=tuple(to_trace_dtype(parts[request.index].clone()) for request in traced),
                )
                logits_output.auxiliary_device_output = self._append_output(
                    logits_output.auxiliary_device_output, output
                )
        except Exception:  # SGLang does not catch
            count_error(self._sink.writer)
        return result
