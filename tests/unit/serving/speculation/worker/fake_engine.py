"""A scheduler and an EAGLE-3 worker in miniature, which call the hooks where SGLang calls them.

The target answers each request with a known text. The draft is right about half of the time. The engine knows which
positions the draft has processed, and fails a test as soon as the draft would start from a cache with a gap.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.worker.draft_catch_up import DraftStart, LateRequest
from aurora_runtime.serving.speculation.worker.hooks import WorkerHooks
from aurora_runtime.serving.speculation.worker.pending_tokens import CatchUpInput
from aurora_runtime.serving.speculation.worker.proposed_tokens import lookup_tokens
from aurora_runtime.serving.speculation.worker.rounds import Round
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest

PROMPT_TOKENS = 4
VOCABULARY = 50
PREFILL, DRAFT_PREFILL, DRAFT, VERIFY, EXTEND = 100.0, 40.0, 2.0, 16.0, 8.0
"""Milliseconds of each pass on the device."""


@dataclass
class DeviceQueue:
    """A device that works off a queue while the host goes on, and the clock of that queue.

    Attributes:
        host_time: the host's time, in milliseconds. Only waiting takes the host any.
        queued_until: when the device has done all that is queued.
        published: when the lengths of the last pass are known. The draft's pass over the tokens comes behind that.
        waits: how often the host waited for a stamp.
    """

    host_time: float = 0.0
    queued_until: float = 0.0
    published: float = 0.0
    waits: int = 0

    def run(self, milliseconds: float) -> None:
        self.queued_until = max(self.queued_until, self.host_time) + milliseconds

    def publish(self) -> None:
        self.published = self.queued_until

    def wait_for_lengths(self) -> None:
        self.host_time = max(self.host_time, self.published)

    def stamp(self) -> float:
        return max(self.queued_until, self.host_time)

    def milliseconds(self, first: float, last: float) -> float:
        self.waits += last > self.host_time
        self.host_time = max(self.host_time, last)
        return last - first


@dataclass
class RunningRequest(FakeRequest):
    """A request with what the device knows about it."""

    row: int = 0
    max_tokens: int = 12
    length: int = 0  # committed tokens in the target's KV cache
    drafted: int = 0  # positions that the draft has processed, without a gap. -1: it did not process the prompt
    skip_radix_cache_insert: bool = False

    def token(self, position: int) -> int:
        """The prompt, then the target's text: it repeats itself, so that lookup finds something."""
        return (self.row * 7 + position % 9 * 5) % VOCABULARY


def forward_mode(*, extend: bool) -> Any:
    return SimpleNamespace(is_extend=lambda: extend, is_idle=lambda: False)


@dataclass
class FakeEngine:
    """Runs requests to their end.

    Attributes:
        overlaps: whether results are processed after the next launch.
    """

    hooks: WorkerHooks
    overlaps: bool
    random: random.Random
    retract_share: float = 0.0
    running: list[RunningRequest] = field(default_factory=list)
    waiting: list[RunningRequest] = field(default_factory=list)
    queue: deque[Any] = field(default_factory=deque)
    device: DeviceQueue = field(default_factory=DeviceQueue)
    steps: int = 0
    rounds: int = 0
    catch_ups: int = 0
    draft_prefills: int = 0

    def __post_init__(self) -> None:
        self.worker = SimpleNamespace()

    def activate(self, steps: int) -> None:
        self.steps = steps

    def run(self, requests: Sequence[RunningRequest]) -> None:
        self.waiting = list(requests)
        while self.running or self.waiting or self.queue:
            retracted = self._retract()
            launched = self._prefill() if self.waiting else self._decode() if self.running else None
            if launched is not None:
                self.queue.append(launched)
            while len(self.queue) > (1 if self.overlaps and launched is not None else 0):
                self._process(*self.queue.popleft())
            self.waiting += retracted

    def _retract(self) -> list[RunningRequest]:
        """Take a request out of the engine, to be prefilled again: its KV cache is needed elsewhere."""
        if not self.running or self.random.random() >= self.retract_share:
            return []
        req = self.random.choice(self.running)
        req.is_retracted = True
        self._release(req, checkpoint=False)
        return [req]

    # the device ------------------------------------------------------------------------------------------------------

    def _prefill(self) -> Any:
        req = self.waiting.pop(0)
        req.is_retracted = False
        req.kv = SimpleNamespace(holds_kv=True, req_pool_idx=req.row)
        batch = SimpleNamespace(forward_mode=forward_mode(extend=True), is_extend_in_batch=True, reqs=[req])
        req.length, req.drafted = len(req.origin_input_ids) + len(req.output_ids), -1
        self.hooks.around_forward(self._forward_prefill, self.worker, batch)
        self.running.append(req)
        return [req], [[req.token(req.length)]], None

    def _forward_prefill(self, _: Any, batch: Any) -> None:
        self.device.run(PREFILL)
        self.device.publish()
        self.hooks.around_prefill_extend(self._draft_prefill, None, batch, None, None)

    def _draft_prefill(self, _: Any, batch: Any, *__: Any) -> None:
        self.device.run(DRAFT_PREFILL)
        self.draft_prefills += len(batch.reqs)
        for req in batch.reqs:
            req.drafted = req.length

    def _decode(self) -> Any:
        self.rounds += 1
        self.device.wait_for_lengths()
        reqs = list(self.running)
        empty = torch.zeros(len(reqs), 1)
        batch = SimpleNamespace(
            forward_mode=forward_mode(extend=False),
            is_extend_in_batch=False,
            reqs=reqs,
            req_pool_indices=torch.tensor([req.row for req in reqs]),
            req_pool_indices_cpu=torch.tensor([req.row for req in reqs]),
            seq_lens=torch.tensor([req.length for req in reqs]),
            seq_lens_cpu=torch.tensor([req.length for req in reqs]),
            spec_info=SimpleNamespace(topk_p=empty, topk_index=empty.long(), hidden_states=empty),
        )
        batch.spec_info.bonus_tokens = self._roots(batch).view(-1)
        committed = self.hooks.around_forward(self._forward, self.worker, batch)
        return reqs, committed, [len(tokens) - 1 for tokens in committed]

    def _forward(self, worker: Any, batch: Any) -> list[list[int]]:
        self.hooks.around_activate(self._fail, worker, len(batch.reqs))
        if self.steps == 0:
            batch.spec_info = SimpleNamespace(draft_token=self._roots(batch).view(-1))
        else:
            batch.spec_info = self.hooks.around_draft(self._draft, None, batch)
        result = self.hooks.around_verify(self._verify, worker, batch)
        self.device.publish()
        self.hooks.around_extend(self._extend, None, batch, result)
        committed = []
        for req, count in zip(batch.reqs, result.accept_lens.tolist(), strict=True):
            committed.append([req.token(req.length + 1 + i) for i in range(count)])
            req.length += count
        return committed

    @staticmethod
    def _roots(batch: Any) -> torch.Tensor:
        return torch.tensor([[req.token(req.length)] for req in batch.reqs])

    def _draft(self, _: Any, batch: Any, *, with_topology: bool) -> Any:
        current = self.hooks._round
        assert current is not None
        assert not with_topology
        self.device.run(DRAFT)
        for req, source in zip(batch.reqs, current.decision.sources, strict=True):
            if source is Source.DRAFT:
                assert req.drafted == req.length, f"the draft of {req.rid} starts from a cache with a gap"
        chains = [self._guess(req) for req in batch.reqs]
        return SimpleNamespace(draft_token=torch.cat([self._roots(batch), torch.tensor(chains)], 1).view(-1))

    def _guess(self, req: RunningRequest) -> list[int]:
        wrong = self.random.randrange(2 * self.steps)
        return [(req.token(req.length + 1 + i) + (i == wrong)) % VOCABULARY for i in range(self.steps)]

    def lookup_verify_input(self, _: Any, batch: Any, current: Round) -> Any:
        tokens = torch.cat([self._roots(batch), lookup_tokens(current, "cpu")], 1)
        return SimpleNamespace(draft_token=tokens.view(-1))

    def _verify(self, _: Any, batch: Any) -> Any:
        self.device.run(VERIFY)
        nodes = batch.spec_info.draft_token.view(len(batch.reqs), self.steps + 1)
        assert nodes[:, 0].tolist() == self._roots(batch).flatten().tolist()
        tokens, lengths, states = torch.full(nodes.shape, -1, dtype=torch.int32), [], []
        for i, req in enumerate(batch.reqs):
            count = 0
            while True:
                tokens[i, count] = req.token(req.length + 1 + count)
                count += 1
                if count > self.steps or int(nodes[i, count]) != int(tokens[i, count - 1]):
                    break
            lengths.append(count)
            states.append([[float(req.length + j)] for j in range(self.steps + 1)])
        return SimpleNamespace(
            next_token_ids=tokens.view(-1),
            accept_lens=torch.tensor(lengths, dtype=torch.int32),
            logits_output=SimpleNamespace(hidden_states=torch.tensor(states).view(-1, 1)),
            next_draft_input=SimpleNamespace(),
        )

    def _extend(self, _: Any, batch: Any, result: Any) -> None:
        self.device.run(EXTEND)
        for req, count in zip(batch.reqs, result.accept_lens.tolist(), strict=True):
            if req.drafted == req.length:
                req.drafted += count

    def catch_up(self, _: Any, __: Any, late: Sequence[LateRequest], inputs: CatchUpInput) -> DraftStart:
        """In place of the draft's pass: check that it gets exactly what it lacks."""
        tokens, states = inputs.tokens.tolist(), inputs.hidden.flatten().tolist()
        for request in late:
            self.catch_ups += 1
            req = request.req
            assert (request.row, request.length) == (req.row, req.length)
            assert req.drafted == request.length - request.pending
            positions = range(req.drafted, req.length)
            assert [states.pop(0) for _ in positions] == list(positions)
            assert [tokens.pop(0) for _ in positions] == [req.token(position + 1) for position in positions]
            req.drafted = req.length
        assert not tokens
        rows = torch.zeros(len(late), 1)
        return DraftStart(rows, rows.long(), rows)

    # the scheduler ---------------------------------------------------------------------------------------------------

    def _process(self, reqs: Sequence[RunningRequest], committed: list[list[int]], accepted: list[int] | None) -> None:
        if accepted is not None:
            self.hooks.around_verify_complete(self._fail, self.worker, accepted, batch_size=len(reqs))
        for req, tokens in zip(reqs, committed, strict=True):
            if req.finished() or req.is_retracted or req not in self.running:
                continue
            req.output_ids += tokens
            if len(req.output_ids) >= req.max_tokens:
                req.ended, req.finished_len = True, req.max_tokens
                self._release(req, checkpoint=True)

    def _release(self, req: RunningRequest, *, checkpoint: bool) -> None:
        self.running.remove(req)
        self.hooks.around_release(self._free, req, None, checkpoint=checkpoint)

    @staticmethod
    def _free(req: RunningRequest, _: Any, *, checkpoint: bool) -> None:
        req.kv.holds_kv = False

    @staticmethod
    def _fail(*_: Any, **__: Any) -> None:
        raise AssertionError("SGLang's own rule ran")
