"""Clones of a batch's device tensors, and their split into the records of single requests.

The clones take SGLang's auxiliary-output path (sglang/srt/managers/auxiliary_output.py). A hook clones the tensors on
the device, SGLang copies the clones to the host with the batch's own results, and calls ``consume`` after it has
committed the batch's tokens. So capture adds no synchronisation. Invariant: ``consume`` never raises, because SGLang
catches no error there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aurora_runtime.serving.capture.request_filter import RequestFilter, TracedRequest
from aurora_runtime.serving.capture.shard_writer import ShardWriter
from aurora_runtime.serving.capture.trace_assembler import Commit, PromptChunk, VerifyRound
from aurora_runtime.traces import ProposalSource

log = logging.getLogger(__name__)


def select_rows(tensor: Tensor, batch_size: int, traced: Sequence[TracedRequest]) -> Tensor:
    """A copy of the rows of the R traced requests: ``[B * n, ...]`` to ``[R, n, ...]``.

    The indices are Python numbers, so nothing is sent to the device.
    """
    whole = tensor.reshape(batch_size, -1, *tensor.shape[1:])
    if len(traced) == batch_size:
        return whole.clone()
    return torch.stack([whole[request.index] for request in traced])


def to_trace_dtype(hidden: Tensor) -> Tensor:
    """Hidden states in 16 bits; float32 becomes bfloat16, because float16 lacks its range."""
    return hidden.to(torch.bfloat16) if hidden.dtype == torch.float32 else hidden


@dataclass(frozen=True)
class CaptureSink:
    """The writer that takes consumed batches, and the filter that selects the traced requests."""

    writer: ShardWriter
    request_filter: RequestFilter


def count_error(writer: ShardWriter) -> None:
    """Count an exception inside a hook: one batch was not captured."""
    writer.count_hook_error()
    log.debug("aurora capture: a batch was not captured", exc_info=True)


def _commits_and_ends(
    batch: Any, commits: Sequence[Any], traced: Sequence[TracedRequest]
) -> list[tuple[Commit | None, bool]]:
    """The commit of each traced request, and whether the request has ended.

    Raises :class:`LookupError` when the batch is not the one that the hook saw.
    """
    result = []
    for request in traced:
        req = batch.reqs[request.index]
        if req.rid != request.rid:
            raise LookupError("the batch's requests moved between hook and commit")
        commit = commits[request.index]
        own = None if commit is None else Commit(commit.output_index, tuple(commit.token_ids))
        result.append((own, bool(req.finished())))
    return result


@dataclass(frozen=True)
class VerifyOutput:
    """Clones of one verify batch: R traced requests of n nodes each, first on the device, then on the host.

    SGLang calls :meth:`copy_to_host`, and then :meth:`consume` once the batch's tokens are committed.
    """

    sink: CaptureSink
    traced: tuple[TracedRequest, ...]
    version: int
    sources: tuple[ProposalSource, ...]  # R
    draft_tokens: Tensor  # [R, n]
    next_token: Tensor  # [R, n]
    next_sibling: Tensor  # [R, n]
    path: Tensor  # [R, steps + 1] node indices within the request; below 0 after the path's end
    path_length: Tensor  # [R] accepted proposed tokens + 1
    hidden: Tensor  # [R, steps + 1, H3] of the path's nodes
    top_ids: Tensor  # [R, n, K]
    top_logprobs: Tensor  # [R, n, K]
    uncaptured_mass: Tensor  # [R, n] probability of all other tokens

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> VerifyOutput:
        fields: dict[str, Any] = {n: copy_tensor(value) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _commits_and_ends(batch, commits, self.traced)
            self.sink.request_filter.probe_captured = True
            self.sink.writer.offer(lambda: self.split(ends), len(self.traced))
        except Exception:  # SGLang does not catch: an error here would end the scheduler
            count_error(self.sink.writer)

    def split(self, ends: Sequence[tuple[Commit | None, bool]]) -> list[PromptChunk | VerifyRound]:
        """One record for each traced request. ``ends`` holds each request's commit and whether it has ended."""
        rounds: list[PromptChunk | VerifyRound] = []
        lengths = self.path_length.tolist()
        for i, (request, (commit, finished)) in enumerate(zip(self.traced, ends, strict=True)):
            rounds.append(
                VerifyRound(
                    rid=request.rid,
                    version=self.version,
                    source=self.sources[i],
                    draft_tokens=self.draft_tokens[i].clone(),
                    next_token=self.next_token[i].clone(),
                    next_sibling=self.next_sibling[i].clone(),
                    path=self.path[i, : lengths[i]].clone(),
                    hidden=self.hidden[i, : lengths[i]],
                    top_ids=self.top_ids[i].clone(),
                    top_logprobs=self.top_logprobs[i].clone(),
                    uncaptured_mass=self.uncaptured_mass[i].clone(),
                    commit=commit,
                    finished=finished,
                )
            )
        return rounds


@dataclass(frozen=True)
class PromptOutput:
    """Clones of one prefill batch's hidden states, one for each traced request.

    SGLang calls its methods as it calls those of :class:`VerifyOutput`.
    """

    sink: CaptureSink
    traced: tuple[TracedRequest, ...]
    starts: tuple[int, ...]
    hidden: tuple[Tensor, ...]  # each [n, H3]

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> PromptOutput:
        return replace(self, hidden=tuple(copy_tensor(part) for part in self.hidden))

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _commits_and_ends(batch, commits, self.traced)
            prompts = [batch.reqs[request.index].origin_input_ids for request in self.traced]
            self.sink.writer.offer(lambda: self.split(ends, prompts), len(self.traced))
        except Exception:  # as in VerifyOutput
            count_error(self.sink.writer)

    def split(
        self, ends: Sequence[tuple[Commit | None, bool]], prompts: Sequence[Sequence[int]]
    ) -> list[PromptChunk | VerifyRound]:
        """One record for each traced request. ``ends`` is as in :meth:`VerifyOutput.split`."""
        return [
            PromptChunk(request.rid, prompt, start, hidden, commit, finished)
            for request, prompt, start, hidden, (commit, finished) in zip(
                self.traced, prompts, self.starts, self.hidden, ends, strict=True
            )
        ]
