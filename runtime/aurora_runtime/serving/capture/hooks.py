"""The hooks that run inside SGLang's scheduler: two keep the tensors of traced batches, one counts ended requests.

The tensors take SGLang's auxiliary-output path (sglang/srt/managers/auxiliary_output.py). A hook keeps the tensors of
a batch, SGLang copies them to the host with the batch's own results, and calls ``consume`` after it has committed the
batch's tokens. So capture adds no synchronisation.

Invariants: a hook and ``consume`` never block, and never raise, because SGLang catches no error there. A hook does
nothing for a batch without traced requests. Only tensor-parallel rank 0 captures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from aurora_runtime.serving.capture.request_filter import RequestFilter, RequestSample, TracedRequest
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.capture.shard_writer import Batch, ShardWriter
from aurora_runtime.serving.capture.trace_assembler import Commit, PromptChunk, VerifyRound
from aurora_runtime.serving.capture.verify_tensors import ReducedVerify, VerifyTensors, to_trace_dtype
from aurora_runtime.serving.chat_template import marker_of
from aurora_runtime.traces import ATTENDED_POSITIONS, ProposalSource


@dataclass(frozen=True)
class CaptureSink:
    """The writer that takes consumed batches, and the filter that selects the traced requests."""

    writer: ShardWriter
    request_filter: RequestFilter


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
            self.sink.writer.count_hook_error()

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
            self.sink.writer.count_hook_error()

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


def attended_rows(batch: Any) -> dict[int, tuple[int, slice]]:
    """The rows to keep of each request of SGLang's prefill ``batch``, by its index, and the position of the first one.

    Training attends to a bounded number of positions before an answer, so a long prompt's earlier states stay in the
    engine. A request without any is absent.

    The batch computes ``extend_lens[i]`` positions of request ``i`` from ``prefix_lens[i]`` on, one after the other.
    """
    found = {}
    end = 0
    for index, (req, start, length) in enumerate(zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True)):
        begin, end = end, end + length
        unattended = max(len(req.origin_input_ids) - ATTENDED_POSITIONS - start, 0)
        if unattended < length:
            found[index] = start + unattended, slice(begin + unattended, end)
    return found


def keep_hidden(hidden: Tensor, *, alone: bool) -> Tensor:
    """Hidden states for later use: a copy on a GPU, where the next batch overwrites them, and themselves on a CPU.

    Args:
        alone: copy on a CPU too, because the states of the other requests of the batch must not be kept.
    """
    return hidden if hidden.device.type == "cpu" and not alone else to_trace_dtype(hidden.clone())


class CaptureHooks:
    """The hooks of one process. The writer thread starts with the first batch on rank 0.

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
        writer = ShardWriter(settings)
        sample = RequestSample(
            lambda: writer.allowance.share,
            bytes.fromhex(settings.traffic_key),
            max_tokens=settings.shard_tokens,
            refused_prompt=writer.count_long_prompt,
        )
        self._sink = CaptureSink(writer, RequestFilter(sample, bytes.fromhex(settings.tag_key)))
        self._started = False
        self._knows_marker = False

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
                output = self._verify_output(traced, result, verify_input, batch, logits_output)
                logits_output.auxiliary_device_output = self._append_output(
                    logits_output.auxiliary_device_output, output
                )
        except Exception:  # SGLang does not catch
            self._sink.writer.count_hook_error()

    def before_release(self, req: Any, *_: Any, **__: Any) -> None:
        """Runs before ``release_kv_cache``: a request leaves the engine, for good or to be prefilled again."""
        try:
            self._sink.writer.ended_requests.add(req)
        except Exception:  # SGLang does not catch
            self._sink.writer.count_hook_error()

    def _verify_output(
        self, traced: tuple[TracedRequest, ...], result: Any, verify_input: Any, batch: Any, logits_output: Any
    ) -> VerifyOutput:
        size = len(batch.reqs)
        version = self._read_version()
        tensors = VerifyTensors.of(result, verify_input, logits_output)
        whole = tensors.outlives_the_batch and not self._sink.request_filter.some_refuse(batch.reqs)
        return VerifyOutput(
            sink=self._sink,
            traced=traced,
            batch_size=size,
            version=int(version) if version.isdecimal() else -1,
            sources=proposal_sources(verify_input, size, traced),
            top_tokens=self._top_tokens,
            tensors=tensors if whole else tensors.reduced(size, traced, self._top_tokens),
        )

    def around_prefill(self, original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs around ``EAGLEWorkerV2._forward_prefill_batch``: reads lengths before it and hidden states after it."""
        traced: tuple[TracedRequest, ...] = ()
        rows: dict[int, tuple[int, slice]] = {}
        total = 0
        try:
            if not self._knows_marker:  # with the engine's warm-up or the launcher's probe, so before any client
                self._knows_marker = True
                self._sink.request_filter.marker = marker_of(worker)
            traced = self._traced_requests(batch)
            if traced:
                rows, total = attended_rows(batch), sum(batch.extend_lens)
                traced = tuple(request for request in traced if request.index in rows)
        except Exception:  # SGLang does not catch
            traced = ()
            self._sink.writer.count_hook_error()
        result = original(worker, batch, *args, **kwargs)
        try:
            logits_output = result.logits_output
            if traced and logits_output is not None and logits_output.hidden_states is not None:
                hidden = logits_output.hidden_states[:total]
                alone = self._sink.request_filter.some_refuse(batch.reqs)
                output = PromptOutput(
                    sink=self._sink,
                    traced=traced,
                    starts=tuple(rows[request.index][0] for request in traced),
                    states=tuple(keep_hidden(hidden[rows[request.index][1]], alone=alone) for request in traced),
                    marker=self._sink.request_filter.marker,
                )
                logits_output.auxiliary_device_output = self._append_output(
                    logits_output.auxiliary_device_output, output
                )
        except Exception:  # SGLang does not catch
            self._sink.writer.count_hook_error()
        return result
