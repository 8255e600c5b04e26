"""How far the draft has processed each request, and when it catches up.

Catching up costs a small share of what the target paid for the same tokens, but at high load this share counts. So the
draft catches up before it proposes, and otherwise only while it is in use and a request has its share of the buffer.
While the draft is not in use, a request that outgrows the buffer cannot use the draft until it ends. Answers never
depend on it.

Limit: requests end with gaps, which the prefix cache keeps. So in a chat the draft's proposals suffer from those parts
of earlier answers that rounds without the draft made.

Invariants: a request's pending tokens are exactly the committed tokens that the draft lacks behind what the prefix
cache held, or the request CANNOT_DRAFT. Only running requests hold pages of the buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from aurora_runtime.pinned_copy import to_device
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT
from aurora_runtime.serving.speculation.worker.draft_catch_up import LateRequest, catch_up, draft_contexts, replace_rows
from aurora_runtime.serving.speculation.worker.pending_tokens import PendingTokens
from aurora_runtime.serving.speculation.worker.rounds import Round, is_running

log = logging.getLogger(__name__)

ROUNDS_IN_USE: Final = 512
"""The draft counts as in use for this many rounds after it was last chosen for its value."""
PASS_TOKENS: Final = 2048
"""Tokens that one pass of the draft processes at most, unless a single request has more."""


@dataclass
class _Progress:
    """One request.

    Attributes:
        row: its row in the request table.
        length: committed tokens in the target's KV cache.
        pending: how many of them the draft has not processed.
        under_way: nodes of rounds whose results the host does not have. So many more tokens may be pending.
    """

    row: int
    length: int = 0
    pending: int = 0
    under_way: int = 0


class DraftProgress:
    """The progress of every running request.

    Args:
        single_rank: whether no other tensor-parallel rank runs the draft's passes too.
    """

    def __init__(self, buffer: PendingTokens, *, single_rank: bool) -> None:
        self._buffer = buffer
        self._single_rank = single_rank
        self._requests: dict[str, _Progress] = {}
        self._rounds_unused = ROUNDS_IN_USE

    @property
    def in_use(self) -> bool:
        return self._rounds_unused < ROUNDS_IN_USE

    def pending(self, rid: str) -> int:
        """Committed tokens that the draft has not processed, or CANNOT_DRAFT. An upper bound with rounds under way."""
        progress = self._requests.get(rid)
        return 0 if progress is None else progress.pending + progress.under_way

    def round_begins(self, draft_worker: Any, batch: Any, current: Round) -> bool:
        """Before any round: note whether the draft is in use, and make room for the round's tokens.

        Returns whether the draft ran, which is not the work of a round without the draft.
        """
        self._give_up_inconsistent(current)
        chosen = current.drafts and not current.decision.explores
        self._rounds_unused = 0 if chosen else self._rounds_unused + 1
        if current.drafts or not self.in_use:
            return False
        full = [i for i, req in enumerate(current.reqs) if self.pending(req.rid) > self._buffer.tokens_for_each_request]
        passes = _passes(self._late(current, full))
        for passed in passes:
            with draft_contexts(draft_worker):
                self._process(draft_worker, batch, passed)
        return bool(passes)

    def before_draft(self, draft_worker: Any, batch: Any, current: Round) -> None:
        """Before the draft's chain: process the pending tokens of the batch. SGLang has entered the contexts."""
        late = self._late(current, [i for i, req in enumerate(current.reqs) if self.pending(req.rid) > 0])
        for passed in _passes(late):
            start = self._process(draft_worker, batch, passed)
            if start is not None:
                places = {req.rid: place for place, req in enumerate(current.reqs)}
                replace_rows(batch.spec_info, [places[request.req.rid] for request in passed], start)

    def draft_left_out(self, current: Round, batch_result: Any) -> None:
        """After a round's verification, instead of the draft's extend: keep what the draft would have processed."""
        kept = self._with_room(current)
        if not kept:
            return
        size = len(current.reqs)
        tokens = batch_result.next_token_ids.view(size, -1)
        width = tokens.shape[1]
        hidden = batch_result.logits_output.hidden_states.view(size, width, -1)
        if len(kept) < size:
            index = to_device(kept, tokens.device)
            tokens, hidden = tokens[index], hidden[index]
        counts = [self.pending(current.reqs[i].rid) for i in kept]
        self._buffer.append([current.rows[i] for i in kept], counts, tokens, hidden)
        for i in kept:
            self._of(current.reqs[i], current.rows[i]).under_way += width

    def committed(self, current: Round, accepted: Sequence[int]) -> None:
        """The accepted proposed tokens of a round without the draft are known."""
        if current.drafts:
            return
        width = current.decision.arm.width
        for req, row, length, count in zip(current.reqs, current.rows, current.lengths, accepted, strict=True):
            if not is_running(req):
                continue
            progress = self._of(req, row)
            if progress.pending != CANNOT_DRAFT:
                progress.pending += count + 1
                progress.length = length + count + 1
                progress.under_way = max(0, progress.under_way - width)

    def prefilled(self, reqs: Sequence[Any], *, drafted: bool) -> None:
        """SGLang prefilled these requests or a chunk of them. ``drafted``: the draft processed the tokens, too.

        A request with an earlier chunk that the draft did not process goes without the draft, also after this chunk. So
        does one that asks for no speculation.
        """
        for req in reqs:
            if not drafted or not wish_of(req).speculate:
                self._start_again(req.rid, req.kv.req_pool_idx, pending=CANNOT_DRAFT)
            elif self.pending(req.rid) != CANNOT_DRAFT:
                self.ended(req.rid)

    def ended(self, rid: str) -> None:
        """A request leaves the engine. The prefix cache may keep its KV, and the draft's with gaps."""
        if (progress := self._requests.pop(rid, None)) is not None:
            self._buffer.release(progress.row)

    def _of(self, req: Any, row: int) -> _Progress:
        if (progress := self._requests.get(req.rid)) is None:
            progress = self._requests[req.rid] = _Progress(row)
        return progress

    def _start_again(self, rid: str, row: int, *, pending: int) -> None:
        """A request has no pending tokens any more, or CANNOT_DRAFT."""
        self._buffer.release(row)
        self._requests[rid] = _Progress(row, pending=pending)

    def _with_room(self, current: Round) -> list[int]:
        """The places of the running requests whose tokens of this round the buffer takes. Others CANNOT_DRAFT."""
        running = [i for i, req in enumerate(current.reqs) if is_running(req) and self.pending(req.rid) >= 0]
        rows = [current.rows[i] for i in running]
        width = current.decision.arm.width
        most = [self.pending(current.reqs[i].rid) + width for i in running]
        kept = []
        for i, granted in zip(running, self._buffer.reserve(rows, most), strict=True):
            if granted:
                kept.append(i)
            else:
                self._start_again(current.reqs[i].rid, current.rows[i], pending=CANNOT_DRAFT)
        return kept

    def _give_up_inconsistent(self, current: Round) -> None:
        """Give up requests whose length is not the one that their rounds add up to: their pending tokens are others."""
        for req, length in zip(current.reqs, current.lengths, strict=True):
            progress = self._requests.get(req.rid)
            if progress is None or progress.pending == CANNOT_DRAFT:
                continue
            if progress.under_way > 0 or (progress.pending > 0 and progress.length != length):
                self._start_again(req.rid, progress.row, pending=CANNOT_DRAFT)

    def _late(self, current: Round, places: Sequence[int]) -> list[LateRequest]:
        return [
            LateRequest(req, current.rows[i], current.lengths[i], self.pending(req.rid))
            for i, req in enumerate(current.reqs)
            if i in places
        ]

    def _process(self, draft_worker: Any, batch: Any, late: Sequence[LateRequest]) -> Any:
        """Let the draft process pending tokens. None: the device has too little memory, and they CANNOT_DRAFT.

        Raises:
            torch.OutOfMemoryError: one of several ranks has too little memory. The others wait for it inside the pass,
                so it cannot go on alone.
        """
        inputs = self._buffer.read([request.row for request in late], [request.pending for request in late])
        try:
            start = catch_up(draft_worker, batch, late, inputs)
        except torch.OutOfMemoryError:
            if not self._single_rank:
                raise
            log.warning("aurora speculation: no memory for the draft to catch up; %d requests go on without", len(late))
            start = None
        for request in late:
            pending = 0 if start is not None else CANNOT_DRAFT
            self._start_again(request.req.rid, request.row, pending=pending)
        return start


def _passes(late: Sequence[LateRequest]) -> list[list[LateRequest]]:
    """The requests in groups of at most :data:`PASS_TOKENS` tokens."""
    groups: list[list[LateRequest]] = []
    tokens = PASS_TOKENS
    for request in late:
        if tokens + request.pending > PASS_TOKENS:
            groups.append([])
            tokens = 0
        groups[-1].append(request)
        tokens += request.pending
    return groups
