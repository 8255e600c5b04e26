"""A batch's tensors on their way to the host, and their split into the records of single requests.

The tensors take SGLang's auxiliary-output path (sglang/srt/managers/auxiliary_output.py). A hook keeps the tensors of
a batch, SGLang copies them to the host with the batch's own results, and calls ``consume`` after it has committed the
batch's tokens. So capture adds no synchronisation. Invariant: ``consume`` never raises, because SGLang catches no error
there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from aurora_runtime.serving.capture.request_filter import RequestFilter, TracedRequest
from aurora_runtime.serving.capture.shard_writer import Batch, ShardWriter
from aurora_runtime.serving.capture.trace_assembler import Commit, PromptChunk, VerifyRound
from aurora_runtime.serving.capture.verify_tensors import ReducedVerify, VerifyTensors, to_trace_dtype
from aurora_runtime.traces import ProposalSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptureSink:
    """The writer that takes consumed batches, and the filter that selects the traced requests."""

    writer: ShardWriter
    request_filter: RequestFilter


def count_error(writer: ShardWriter) -> None:
    """Count an exception inside a hook: one batch was not captured. The log has one such error a minute."""
    if writer.count_hook_error():
        log.warning("aurora capture: a batch was not captured", exc_info=True)


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
    """One verify batch of B requests, of which R are traced, on its way to the host.

    SGLang calls :meth:`copy_to_host`, and then :meth:`consume` once the batch's tokens are committed. ``tensors`` are
    reduced already where the engine reuses their memory. Otherwise :meth:`split` reduces them, in the writer's thread.
    """

    sink: CaptureSink
    traced: tuple[TracedRequest, ...]
    batch_size: int
    version: int
    sources: tuple[ProposalSource, ...]  # R
    top_tokens: int
    tensors: ReducedVerify | VerifyTensors

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> VerifyOutput:
        if isinstance(self.tensors, VerifyTensors):
            return self
        return replace(self, tensors=self.tensors.copied(copy_tensor))

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _commits_and_ends(batch, commits, self.traced)
            self.sink.request_filter.probe_captured = True
            self.sink.writer.offer(Batch(lambda: self.split(ends), len(self.traced), self.tensors.nbytes))
        except Exception:  # SGLang does not catch: an error here would end the scheduler
            count_error(self.sink.writer)

    def split(self, ends: Sequence[tuple[Commit | None, bool]]) -> list[PromptChunk | VerifyRound]:
        """One record for each traced request. ``ends`` holds each request's commit and whether it has ended.

        The small tensors become arrays: a thread that copies a row of an array does not give up the interpreter's lock,
        and every change of the lock's owner costs the scheduler time.
        """
        tensors = self.tensors
        if isinstance(tensors, VerifyTensors):
            tensors = tensors.reduced(self.batch_size, self.traced, self.top_tokens)
        arrays = tensors.arrays()
        rounds: list[PromptChunk | VerifyRound] = []
        lengths = arrays["path_length"].tolist()
        for i, (request, (commit, finished)) in enumerate(zip(self.traced, ends, strict=True)):
            rounds.append(
                VerifyRound(
                    rid=request.rid,
                    version=self.version,
                    source=self.sources[i],
                    draft_tokens=arrays["draft_tokens"][i].copy(),
                    next_token=arrays["next_token"][i].copy(),
                    next_sibling=arrays["next_sibling"][i].copy(),
                    path=arrays["path"][i, : lengths[i]].copy(),
                    hidden=tensors.hidden[i, : lengths[i]],
                    top_ids=arrays["top_ids"][i].copy(),
                    top_logprobs=arrays["top_logprobs"][i].copy(),
                    uncaptured_mass=arrays["uncaptured_mass"][i].copy(),
                    commit=commit,
                    finished=finished,
                )
            )
        return rounds


@dataclass(frozen=True)
class PromptOutput:
    """The hidden states of one prefill batch, one tensor for each traced request.

    SGLang calls its methods as it calls those of :class:`VerifyOutput`.
    """

    sink: CaptureSink
    traced: tuple[TracedRequest, ...]
    starts: tuple[int, ...]
    states: tuple[Tensor, ...]  # each [n, H3]
    marker: tuple[int, ...] = ()  # what the chat template puts before each answer

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> PromptOutput:
        return replace(self, states=tuple(copy_tensor(part) for part in self.states))

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _commits_and_ends(batch, commits, self.traced)
            prompts = [batch.reqs[request.index].origin_input_ids for request in self.traced]
            nbytes = sum(part.nbytes for part in self.states)
            self.sink.writer.offer(Batch(lambda: self.split(ends, prompts), len(self.traced), nbytes))
        except Exception:  # as in VerifyOutput
            count_error(self.sink.writer)

    def split(
        self, ends: Sequence[tuple[Commit | None, bool]], prompts: Sequence[Sequence[int]]
    ) -> list[PromptChunk | VerifyRound]:
        """One record for each traced request. ``ends`` is as in :meth:`VerifyOutput.split`."""
        return [
            PromptChunk(request.rid, prompt, start, to_trace_dtype(states), commit, finished, request.tag, self.marker)
            for request, prompt, start, states, (commit, finished) in zip(
                self.traced, prompts, self.starts, self.states, ends, strict=True
            )
        ]
