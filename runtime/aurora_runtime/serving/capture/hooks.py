"""What runs inside SGLang's scheduler: two hooks that clone a batch's device tensors, and their way to the writer.

The tensors leave by SGLang's auxiliary-output path (sglang/srt/managers/auxiliary_output.py): cloned on the device when
the hook runs, copied to the host with the batch's own results, consumed after its tokens are committed. So capture adds
no synchronisation. Invariants: a hook never raises and never blocks; it does nothing for a batch without traced
requests; only tensor-parallel rank 0 captures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_protocol.agent_api import MEASUREMENT_PREFIX
from aurora_runtime.serving.capture.shard_writer import ShardWriter, sampled
from aurora_runtime.serving.capture.trace_assembler import Commit, PromptChunk, VerifyRound
from aurora_runtime.serving.pod_files import PROBE_PREFIX, CaptureSettings

log = logging.getLogger(__name__)

HEALTH_CHECK_PREFIX: Final = "HEALTH_CHECK"
BLOCK: Final = 64
LOWEST_LOGPROB: Final = -1e4
"""Grammar masks make logits -inf; float16 keeps this, and 0 * this is 0."""


@dataclass(frozen=True)
class Row:
    """One traced request of a batch: its index in ``batch.reqs`` and its id."""

    index: int
    rid: str


class Gate:
    """Which requests are traced. Before the launcher's probe came through, only the probe: warm-ups are not traffic."""

    def __init__(self, ratio: Decimal) -> None:
        self._ratio = ratio
        self.open = False

    def rows(self, reqs: Sequence[Any]) -> tuple[Row, ...]:
        return tuple(Row(index, req.rid) for index, req in enumerate(reqs) if self._takes(req))

    def _takes(self, req: Any) -> bool:
        rid = req.rid
        if not isinstance(rid, str) or rid.startswith((HEALTH_CHECK_PREFIX, MEASUREMENT_PREFIX)):
            return False
        if rid.startswith(PROBE_PREFIX):
            return True
        if not self.open or req.multimodal_inputs is not None or req.input_embeds is not None:
            return False  # a position without a token id cannot be trained on
        return req.beam_group is None and sampled(rid, self._ratio)


def select(tensor: Tensor, batch: int, rows: Sequence[Row]) -> Tensor:
    """A copy of the traced requests' rows of ``tensor`` [B·n, …] as [R, n, …]; no host-to-device copy is needed."""
    whole = tensor.reshape(batch, -1, *tensor.shape[1:])
    if len(rows) == batch:
        return whole.clone()
    return torch.stack([whole[row.index] for row in rows])


def half(hidden: Tensor) -> Tensor:
    """Hidden states as traces hold them: 16 bits; bfloat16 for float32, whose range float16 lacks."""
    return hidden.to(torch.bfloat16) if hidden.dtype == torch.float32 else hidden


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` most likely tokens of each row of [N, V]: ids, log-probabilities [N, k], and the mass outside [N].

    They lie in the ``k`` blocks with the highest maxima, so only those are sorted: on a CPU a sort of the whole
    vocabulary was a third of what capture cost at concurrency 4 (docs/results/costs.md).
    """
    scores = torch.log_softmax(logits.float(), dim=-1)
    vocabulary = scores.shape[-1]
    k = min(k, vocabulary)
    blocks = F.pad(scores, (0, -vocabulary % BLOCK), value=-torch.inf) if vocabulary % BLOCK else scores
    blocks = blocks.view(scores.shape[0], -1, BLOCK)
    best = blocks.amax(-1).topk(min(k, blocks.shape[1]), dim=-1, sorted=False).indices.unsqueeze(-1)
    candidates = blocks.gather(1, best.expand(-1, -1, BLOCK)).flatten(1)
    tokens = (best * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    logprobs, at = candidates.topk(k, dim=-1)
    ids = tokens.gather(1, at).clamp_(max=vocabulary - 1)  # padding is chosen only where a grammar masks nearly all
    rest = (1 - logprobs.exp().sum(-1)).clamp_(0, 1)
    return ids.to(torch.int32), logprobs.clamp_(min=LOWEST_LOGPROB).half(), rest.half()


@dataclass(frozen=True)
class Sink:
    """Where consumed batches go."""

    writer: ShardWriter
    gate: Gate


def _commit(commit: Any) -> Commit | None:
    return None if commit is None else Commit(commit.output_index, tuple(commit.token_ids))


def _ends(batch: Any, commits: Sequence[Any], rows: Sequence[Row]) -> list[tuple[Commit | None, bool]]:
    """Commit and end of each traced request; raises when the batch is not the one that the hook saw."""
    ends = []
    for row in rows:
        req = batch.reqs[row.index]
        if req.rid != row.rid:
            raise LookupError("the batch's requests moved between hook and commit")
        ends.append((_commit(commits[row.index]), bool(req.finished())))
    return ends


@dataclass(frozen=True)
class VerifyOutput:
    """Clones of one verify batch, R traced requests of n nodes; device first, then host."""

    sink: Sink
    rows: tuple[Row, ...]
    version: int
    draft_tokens: Tensor  # [R, n]
    next_token: Tensor  # [R, n]
    next_sibling: Tensor  # [R, n]
    path: Tensor  # [R, steps + 1] node indices within the request; below 0 where there is none
    path_length: Tensor  # [R] accepted drafts + 1
    hidden: Tensor  # [R, steps + 1, H3] of the path's nodes
    top_ids: Tensor  # [R, n, K]
    top_logprobs: Tensor  # [R, n, K]
    rest: Tensor  # [R, n]

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> VerifyOutput:
        fields: dict[str, Any] = {n: copy_tensor(value) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _ends(batch, commits, self.rows)
            if not self.sink.gate.open:
                self.sink.gate.open = True
            self.sink.writer.offer(lambda: self.split(ends), len(self.rows))
        except Exception:  # SGLang does not catch: an error here would end the scheduler
            _count(self.sink.writer)

    def split(self, ends: Sequence[tuple[Commit | None, bool]]) -> list[PromptChunk | VerifyRound]:
        rounds: list[PromptChunk | VerifyRound] = []
        lengths = self.path_length.tolist()
        for i, (row, (commit, finished)) in enumerate(zip(self.rows, ends, strict=True)):
            rounds.append(
                VerifyRound(
                    rid=row.rid,
                    version=self.version,
                    draft_tokens=self.draft_tokens[i].clone(),
                    next_token=self.next_token[i].clone(),
                    next_sibling=self.next_sibling[i].clone(),
                    path=self.path[i, : lengths[i]].clone(),
                    hidden=self.hidden[i, : lengths[i]],
                    top_ids=self.top_ids[i].clone(),
                    top_logprobs=self.top_logprobs[i].clone(),
                    rest=self.rest[i].clone(),
                    commit=commit,
                    finished=finished,
                )
            )
        return rounds


@dataclass(frozen=True)
class PromptOutput:
    """Clones of one prefill batch's hidden states, by traced request."""

    sink: Sink
    rows: tuple[Row, ...]
    starts: tuple[int, ...]
    hidden: tuple[Tensor, ...]  # each [n, H3]

    def copy_to_host(self, copy_tensor: Callable[[Tensor], Tensor]) -> PromptOutput:
        return replace(self, hidden=tuple(copy_tensor(part) for part in self.hidden))

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        try:
            ends = _ends(batch, commits, self.rows)
            prompts = [batch.reqs[row.index].origin_input_ids for row in self.rows]
            self.sink.writer.offer(lambda: self.split(ends, prompts), len(self.rows))
        except Exception:  # as above
            _count(self.sink.writer)

    def split(
        self, ends: Sequence[tuple[Commit | None, bool]], prompts: Sequence[Sequence[int]]
    ) -> list[PromptChunk | VerifyRound]:
        return [
            PromptChunk(row.rid, prompt, start, hidden, commit, finished)
            for row, prompt, start, hidden, (commit, finished) in zip(
                self.rows, prompts, self.starts, self.hidden, ends, strict=True
            )
        ]


def _count(writer: ShardWriter) -> None:
    writer.failed()
    log.debug("aurora capture: a batch was not captured", exc_info=True)


class Hooks:
    """The two hooks of one process; the writer thread starts with the first batch that is seen on rank 0.

    Args:
        append: SGLang's ``append_auxiliary_output``.
        rank: reads this process's tensor-parallel rank.
        version: reads the weight version in force.
    """

    def __init__(
        self,
        settings: CaptureSettings,
        *,
        append: Callable[[Any, Any], Any],
        rank: Callable[[], int],
        version: Callable[[], str],
    ) -> None:
        self._top_k = settings.top_k
        self._append = append
        self._rank = rank
        self._version = version
        self._sink = Sink(ShardWriter(settings), Gate(Decimal(settings.sample_ratio)))
        self._started = False

    def _rows(self, batch: Any) -> tuple[Row, ...]:
        if batch.forward_mode.is_idle() or self._rank() != 0:
            return ()
        if not self._started:
            self._started = True
            self._sink.writer.start()
        return self._sink.gate.rows(batch.reqs)

    def after_sample(self, result: Any, verify_input: Any, batch: Any, logits_output: Any, *_: Any, **__: Any) -> None:
        """AFTER ``eagle_sample``: all that a verify round decided is in hand, before tree compaction."""
        try:
            rows = self._rows(batch)
            if rows:
                output = self._verify(rows, result, verify_input, batch, logits_output)
                logits_output.auxiliary_device_output = self._append(logits_output.auxiliary_device_output, output)
        except Exception:  # SGLang does not catch
            _count(self._sink.writer)

    def _verify(
        self, rows: tuple[Row, ...], result: Any, verify_input: Any, batch: Any, logits_output: Any
    ) -> VerifyOutput:
        _, accept_lens, accept_index = result
        size, nodes = len(batch.reqs), verify_input.draft_token_num
        path = accept_index.reshape(size, -1).long()
        states = logits_output.hidden_states.index_select(0, path.clamp(min=0).reshape(-1))
        offsets = torch.arange(size, device=path.device).unsqueeze(1) * nodes
        ids, logprobs, rest = top(select(logits_output.next_token_logits, size, rows).flatten(0, 1), self._top_k)
        chosen = (len(rows), nodes)
        version = self._version()
        return VerifyOutput(
            sink=self._sink,
            rows=rows,
            version=int(version) if version.isdecimal() else -1,
            draft_tokens=select(verify_input.draft_token, size, rows),
            next_token=select(verify_input.retrieve_next_token.reshape(-1), size, rows),
            next_sibling=select(verify_input.retrieve_next_sibling.reshape(-1), size, rows),
            path=select((path - offsets).reshape(-1), size, rows),
            path_length=select(accept_lens, size, rows).reshape(-1),
            hidden=half(select(states, size, rows)),
            top_ids=ids.reshape(*chosen, -1),
            top_logprobs=logprobs.reshape(*chosen, -1),
            rest=rest.reshape(chosen),
        )

    def around_prefill(self, original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """AROUND ``EAGLEWorkerV2._forward_prefill_batch``: the lengths before it, the hidden states after it."""
        rows: tuple[Row, ...] = ()
        starts: list[int] = []
        lengths: list[int] = []
        try:
            rows = self._rows(batch)
            if rows:
                starts, lengths = list(batch.prefix_lens), list(batch.extend_lens)
        except Exception:  # SGLang does not catch
            rows = ()
            _count(self._sink.writer)
        result = original(worker, batch, *args, **kwargs)
        try:
            logits_output = result.logits_output
            if rows and logits_output is not None and logits_output.hidden_states is not None:
                parts = logits_output.hidden_states[: sum(lengths)].split(lengths)
                output = PromptOutput(
                    sink=self._sink,
                    rows=rows,
                    starts=tuple(starts[row.index] for row in rows),
                    hidden=tuple(half(parts[row.index].clone()) for row in rows),
                )
                logits_output.auxiliary_device_output = self._append(logits_output.auxiliary_device_output, output)
        except Exception:  # SGLang does not catch
            _count(self._sink.writer)
        return result
