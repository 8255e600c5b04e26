"""The hooks that run inside SGLang's EAGLE-3 worker and carry out each round's decision.

SGLang keeps one runtime state for each number of steps (sglang/srt/speculative/adaptive_runtime_state.py). Its own rule
chooses the state by acceptance alone. These hooks choose instead, put lookup's tokens into the verify round, leave out
the draft where it is not needed, and let the draft catch up before it is needed again.

Invariants:
- Verification is SGLang's own, so answers do not depend on what is proposed.
- An error before a round makes it a round without proposals. An error that would leave SGLang's state half changed is
  raised.
- A drafting round starts from a draft KV cache without gaps, for every request whose source may be the draft.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from aurora_runtime.serving.speculation.arms import Arm
from aurora_runtime.serving.speculation.draft_catch_up import LateRequest, catch_up, replace_rows
from aurora_runtime.serving.speculation.engine_requirements import SWITCH_LOGGER, is_no_switch, obstacle_to_control
from aurora_runtime.serving.speculation.outlook import Decision
from aurora_runtime.serving.speculation.pending_tokens import PendingTokens
from aurora_runtime.serving.speculation.policy import Policy
from aurora_runtime.serving.speculation.proposed_tokens import lookup_verify_input, with_lookup
from aurora_runtime.serving.speculation.rank_agreement import RankAgreement
from aurora_runtime.serving.speculation.round_report import RoundReport
from aurora_runtime.serving.speculation.rounds import Round, RoundObserver, plain_decision
from aurora_runtime.serving.speculation.tracked_requests import TrackedRequests

log = logging.getLogger(__name__)

Original = Callable[..., Any]


class WorkerHooks:
    """The hooks of one scheduler process. SGLang calls all of them from one thread.

    Args:
        arms: the arms that may be decided.
        pending_bytes: device memory for pending tokens.
        refuse: is told why the engine cannot be controlled. The hooks then leave every round to SGLang.
        ranks: makes the agreement among tensor-parallel ranks. Called at the engine's start.
        read_version: returns the draft's version.
    """

    def __init__(
        self,
        policy: Policy,
        requests: TrackedRequests,
        report: RoundReport,
        *,
        arms: Sequence[Arm],
        pending_bytes: int,
        refuse: Callable[[str], None],
        ranks: Callable[[], RankAgreement] = RankAgreement.of_engine,
        read_version: Callable[[], str],
    ) -> None:
        self._policy = policy
        self._requests = requests
        self._report = report
        self._observer = RoundObserver(policy)
        self._pending_bytes = pending_bytes
        self._arms = tuple(arms)
        self._widest = max(arm.steps for arm in self._arms)
        self._refuse = refuse
        self._make_ranks = ranks
        self._read_version = read_version
        self._ranks: RankAgreement | None = None
        self._pending: PendingTokens | None = None
        self._round: Round | None = None
        self._version: str | None = None
        self._active = False

    def around_start(self, original: Original, worker: Any) -> None:
        """Around ``EAGLEWorkerV2.init_cuda_graphs``: checks that the engine was started as the hooks need it."""
        original(worker)
        obstacle = obstacle_to_control(worker, self._arms)
        if obstacle is not None:
            log.error("aurora speculation: rounds are not controlled, because %s", obstacle)
            self._refuse(obstacle)
            return
        self._active = True
        logging.getLogger(SWITCH_LOGGER).addFilter(is_no_switch)
        self._ranks = self._make_ranks()
        if self._ranks.decides:
            self._report.start()

    # the round -------------------------------------------------------------------------------------------------------

    def around_forward(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.forward_batch_generation``: decides a decode round before it begins."""
        if not self._active:
            return original(worker, batch, *args, **kwargs)
        began = self._observer.forward_begins()
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            result = original(worker, batch, *args, **kwargs)
            for req in batch.reqs:
                self._requests.caught_up(req.rid)  # SGLang ran the draft over all tokens of a prefilled request
            return result
        if batch.forward_mode.is_idle() or not batch.reqs:
            return original(worker, batch, *args, **kwargs)
        self._round = self._begin(worker, batch, began)
        self._observer.round_begins(self._round)
        worker.adaptive_controller._activate(self._round.decision.arm.steps)
        try:
            return original(worker, batch, *args, **kwargs)
        finally:
            self._round = None

    def around_activate(self, original: Original, worker: Any, batch_size: int) -> None:
        """In place of ``EAGLEWorkerV2.activate_step_by_batch``: the round has its state already."""
        if not self._active:
            original(worker, batch_size)

    def around_verify_complete(
        self, original: Original, worker: Any, num_correct_drafts_per_req: Sequence[int], batch_size: int = 0
    ) -> None:
        """In place of ``EAGLEWorkerV2.on_verify_complete_cpu``: the accepted tokens of a round are known."""
        if not self._active:
            original(worker, num_correct_drafts_per_req, batch_size=batch_size)
            return
        ended = self._observer.round_ended(num_correct_drafts_per_req)
        if ended is None:
            return
        self._report.add(ended, num_correct_drafts_per_req)
        if not ended.drafts and self._pending is not None:
            for req, accepted in zip(ended.reqs, num_correct_drafts_per_req, strict=True):
                self._requests.skipped(req.rid, accepted + 1, self._pending.capacity)

    def around_release(self, original: Original, req: Any, tree_cache: Any, *, checkpoint: bool) -> None:
        """Around ``release_kv_cache``: a request leaves the engine, for good or to be prefilled again."""
        self._requests.ended(req)
        self._observer.request_ended(req.rid)
        self._report.request_ended(req.rid)
        original(req, tree_cache, checkpoint=checkpoint)

    def _begin(self, worker: Any, batch: Any, began: float) -> Round:
        assert self._ranks is not None
        reqs = tuple(batch.reqs)
        outlooks, proposals = self._requests.before_round(reqs, self._widest)
        decision = self._ranks.agree(self._decide(outlooks) if self._ranks.decides else None, len(reqs))
        rows = tuple(int(row) for row in batch.req_pool_indices_cpu.tolist())
        lengths = tuple(int(length) for length in batch.seq_lens_cpu.tolist())
        return Round(decision, outlooks, proposals, reqs, rows, lengths, began)

    def _decide(self, outlooks: Sequence[Any]) -> Decision:
        try:
            version = self._read_version()
            if version != self._version:
                if self._version is not None:
                    self._policy.draft_replaced()
                self._version = version
            return self._policy.choose(outlooks)
        except Exception:  # a wrong choice costs time; an exception here would end the scheduler
            self._report.count_error()
            log.exception("aurora speculation: a round was decided without the controller")
            return plain_decision(len(outlooks))

    # the draft -------------------------------------------------------------------------------------------------------

    def around_draft(self, original: Original, draft_worker: Any, batch: Any, *, with_topology: bool = False) -> Any:
        """Around ``EagleDraftWorker.draft``: proposes from the decided sources."""
        current = self._round
        if current is None:
            return original(draft_worker, batch, with_topology=with_topology)
        if not current.drafts:
            return lookup_verify_input(draft_worker, batch, current)
        self._catch_up(draft_worker, batch, current)
        verify_input = original(draft_worker, batch, with_topology=with_topology)
        verify_input.draft_token = with_lookup(verify_input.draft_token, current)
        return verify_input

    def around_verify(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.verify``: tells trace capture who proposed each chain."""
        if self._round is not None:
            batch.spec_info.aurora_sources = self._round.decision.sources
        return original(worker, batch, *args, **kwargs)

    def around_extend(
        self, original: Original, draft_worker: Any, batch: Any, batch_result: Any, **kwargs: Any
    ) -> None:
        """Around ``EagleDraftWorker._draft_extend_for_decode``: leaves it out in a round that does not draft."""
        current = self._round
        if current is None or current.drafts:
            original(draft_worker, batch, batch_result, **kwargs)
            return
        self._keep_pending(draft_worker, current, batch_result)
        fill_draft_start(draft_worker, batch_result.next_draft_input, len(current.reqs))

    def _keep_pending(self, draft_worker: Any, current: Round, batch_result: Any) -> None:
        if self._pending is None:
            rows = draft_worker.req_to_token_pool.req_to_token.shape[0]
            self._pending = PendingTokens(rows, self._widest + 1, self._pending_bytes)
        size = len(current.reqs)
        kept = [i for i, req in enumerate(current.reqs) if self._requests.pending(req.rid) >= 0]
        if not kept:
            return
        tokens = batch_result.next_token_ids.view(size, -1)
        hidden = batch_result.logits_output.hidden_states.view(size, tokens.shape[1], -1)
        if len(kept) < size:
            tokens, hidden = tokens[kept], hidden[kept]
        counts = [self._requests.pending(current.reqs[i].rid) for i in kept]
        self._pending.append([current.rows[i] for i in kept], counts, tokens, hidden)

    def _catch_up(self, draft_worker: Any, batch: Any, current: Round) -> None:
        pending = [self._requests.pending(req.rid) for req in current.reqs]
        behind = [i for i, count in enumerate(pending) if count > 0]
        if not behind or self._pending is None:
            return
        late = [LateRequest(current.reqs[i], current.rows[i], current.lengths[i], pending[i]) for i in behind]
        inputs = self._pending.read([r.row for r in late], [r.pending for r in late])
        start = catch_up(draft_worker, batch, late, inputs)
        replace_rows(batch.spec_info, behind, start)
        for request in late:
            self._requests.caught_up(request.req.rid)


def fill_draft_start(draft_worker: Any, draft_input: Any, requests: int) -> None:
    """Give the next draft input tensors of the right shapes. Nothing reads them before the draft has caught up.

    The scheduler filters and merges them with the batch (sglang/srt/speculative/eagle_info.py:235).
    """
    from sglang.srt.speculative.eagle_utils import get_draft_recurrent_hidden_state_spec

    width, dtype = get_draft_recurrent_hidden_state_spec(draft_worker.draft_runner)
    device = draft_worker.device
    draft_input.topk_p = torch.zeros((requests, 1), dtype=torch.float32, device=device)
    draft_input.topk_index = torch.zeros((requests, 1), dtype=torch.int64, device=device)
    draft_input.hidden_states = torch.zeros((requests, width), dtype=dtype, device=device)
