"""The hooks that run inside SGLang's EAGLE-3 worker and carry out each round's decision.

SGLang keeps one runtime state for each number of steps (sglang/srt/speculative/adaptive_runtime_state.py). Its own rule
chooses the state by acceptance alone. These hooks choose instead, put lookup's tokens into the verify round, leave out
the draft where it is not needed, and let the draft catch up before it is needed again.

Invariants:
- Verification is SGLang's own, so answers do not depend on what is proposed. Penalties and ``min_new_tokens`` are an
  exception: SGLang counts only the last token of a round for them (``ScheduleBatch.cumulate_penalty_output_tokens``).
- After an error in lookup the round goes on without lookup, and after one in a decision without proposals. After an
  error of the policy or of the report while they learn from a round the engine goes on. Any other error is raised,
  because SGLang's state may then be half changed.
- With several tensor-parallel ranks, an error in lookup that not all of them have is raised, and so is a lack of memory
  for the draft. Otherwise this rank would propose different tokens, or the other ranks would wait for it for ever.
- A drafting round starts from a draft KV cache without gaps behind what the prefix cache held, for every request that
  the draft can serve.
- An untrained draft processes no prompt and proposes nothing. The requests of these prompts go without a draft to their
  end, also after a swap.
- A measurement holds its own requests to off by their ids. In a batch of such requests alone the draft processes no
  prompt, and no round proposes.

Under overlap scheduling the host waits for the last round's tokens before it decides a round (``early_results.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.device_clock import DeviceClock
from aurora_runtime.serving.speculation.worker.early_results import start_copy
from aurora_runtime.serving.speculation.worker.engine_control import EngineControl
from aurora_runtime.serving.speculation.worker.engine_requirements import (
    SWITCH_LOGGER,
    is_no_switch,
    obstacle_to_control,
)
from aurora_runtime.serving.speculation.worker.guarded_learning import GuardedLearning
from aurora_runtime.serving.speculation.worker.policy import Learner, Policy
from aurora_runtime.serving.speculation.worker.proposed_tokens import lookup_verify_input, with_lookup
from aurora_runtime.serving.speculation.worker.round_report import RoundReport
from aurora_runtime.serving.speculation.worker.rounds import Round, RoundObserver, plain_decision

log = logging.getLogger(__name__)

Original = Callable[..., Any]


class WorkerHooks:
    """The hooks of one scheduler process. SGLang calls all of them from one thread.

    Args:
        refuse: is told why the engine cannot be controlled. The hooks then leave every round to SGLang.
        read_version: returns the draft's version. After a load that failed on some ranks the ranks have different ones.
        runs_draft: whether the draft of this version is worth running. None: every draft is.
    """

    def __init__(
        self,
        settings: SpeculationSettings,
        policy: Policy,
        report: RoundReport,
        *,
        refuse: Callable[[str], None],
        read_version: Callable[[], str],
        runs_draft: Callable[[str], bool] | None = None,
    ) -> None:
        self._settings = settings
        self._longest = max(arm.steps for arm in settings.arms)
        self._policy = policy
        self._report = report
        self._refuse = refuse
        self._read_version = read_version
        self._runs_draft = runs_draft
        self._prefill_drafts = True
        self._learning = GuardedLearning(policy, report)
        self._observer = RoundObserver(self._learning)  # until the engine's start shows which clock is right
        self._control: EngineControl | None = None
        self._round: Round | None = None
        self._version: str | None = None

    def around_start(self, original: Original, worker: Any) -> None:
        """Around ``EAGLEWorkerV2.init_cuda_graphs``: takes control if the engine was started as the hooks need it."""
        original(worker)
        obstacle = obstacle_to_control(worker, self._settings)
        if obstacle is not None:
            log.error("aurora speculation: rounds are not controlled, because %s", obstacle)
            self._refuse(obstacle)
            return
        self._control = EngineControl(worker, self._settings)
        logging.getLogger(SWITCH_LOGGER).addFilter(is_no_switch)
        self._observer = round_observer(self._learning, self._control.draft_worker.device, self._control.overlaps)
        if self._control.ranks.decides:
            self._report.start()

    # the round -------------------------------------------------------------------------------------------------------

    def around_forward(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.forward_batch_generation``: decides a decode round before it begins."""
        control = self._control
        if control is None or batch.forward_mode.is_idle() or not batch.reqs:
            return original(worker, batch, *args, **kwargs)
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            self._prefill_begins(control, batch.reqs)
            self._prefill_drafts = not are_held_off(batch.reqs) and self._agreed_to_draft(control)
            result = original(worker, batch, *args, **kwargs)
            control.progress.prefilled(batch.reqs, drafted=self._prefill_drafts)
            return result
        self._round = current = self._next_round(control, batch)
        if control.progress.round_begins(control.draft_worker, batch, current):
            self._observer.interrupted()  # the draft catches up: the time is not the round's own
        control.activate(current.decision.arm.steps)
        try:
            return original(worker, batch, *args, **kwargs)
        finally:
            self._round = None

    def around_activate(self, original: Original, worker: Any, batch_size: int) -> None:
        """In place of ``EAGLEWorkerV2.activate_step_by_batch``: the round has its state already."""
        if self._control is None:
            original(worker, batch_size)

    def around_verify_complete(
        self, original: Original, worker: Any, num_correct_drafts_per_req: Sequence[int], batch_size: int = 0
    ) -> None:
        """In place of ``EAGLEWorkerV2.on_verify_complete_cpu``: the accepted tokens of a round are known.

        Under overlap scheduling they have been known since the next round began.
        """
        if self._control is None:
            original(worker, num_correct_drafts_per_req, batch_size=batch_size)
            return
        if not self._control.overlaps:
            self._round_ended(self._control, num_correct_drafts_per_req)

    def around_release(self, original: Original, req: Any, tree_cache: Any, *, checkpoint: bool) -> None:
        """Around ``release_kv_cache``: a request leaves the engine, for good or to be prefilled again."""
        control = self._control
        if control is not None:
            control.progress.ended(req.rid)
            control.texts.ended(req)
            self._report.request_ended(req.rid)
            self._observer.request_ended(req.rid)
        original(req, tree_cache, checkpoint=checkpoint)

    def _prefill_begins(self, control: EngineControl, reqs: Sequence[Any]) -> None:
        """A prefill ends the time of the last round, unless the round may still be running."""
        if not control.overlaps:
            self._observer.forward_begins()
            return
        self._observer.interrupted()
        if self._observer.involves(reqs):  # retracted in the meantime: the round must not count after the prefill
            self._take_early_results(control)

    def _take_early_results(self, control: EngineControl) -> Mapping[str, Sequence[int]]:
        """Under overlap scheduling: end the last round. Returns its tokens by request."""
        results, control.results = control.results, None
        if results is None:
            return {}
        committed = results.committed()
        ended = self._round_ended(control, [len(tokens) - 1 for tokens in committed], committed)
        if ended is None:
            return {}
        return {req.rid: tokens for req, tokens in zip(ended.reqs, committed, strict=True)}

    def _round_ended(
        self, control: EngineControl, accepted: Sequence[int], committed: Sequence[Sequence[int]] = ()
    ) -> Round | None:
        ended = self._observer.round_ended(accepted, committed)
        if ended is not None:
            self._learning.count(ended, accepted)
            control.progress.committed(ended, accepted)
        return ended

    def _next_round(self, control: EngineControl, batch: Any) -> Round:
        recent = self._take_early_results(control)
        began = self._observer.forward_begins()
        current = self._begin(control, batch, recent, began)
        self._observer.round_begins(current)
        return current

    def _begin(self, control: EngineControl, batch: Any, recent: Mapping[str, Sequence[int]], began: Any) -> Round:
        reqs = tuple(batch.reqs)
        rows = tuple(batch.req_pool_indices_cpu.tolist())
        lengths = tuple(batch.seq_lens_cpu.tolist())
        found = self._look_up(control, reqs, lengths, [recent.get(req.rid, ()) for req in reqs])
        proposals = found or (Proposal(),) * len(reqs)
        outlooks = tuple(
            RequestOutlook(req.rid, proposal.match_length, len(proposal.tokens), control.progress.pending(req.rid))
            for req, proposal in zip(reqs, proposals, strict=True)
        )
        decision = self._agreed(control, outlooks, lookup_failed=found is None, held_off=are_held_off(reqs))
        return Round(decision, outlooks, proposals, reqs, rows, lengths, began)

    def _look_up(
        self, control: EngineControl, reqs: Sequence[Any], lengths: Sequence[int], recent: Sequence[Sequence[int]]
    ) -> tuple[Proposal, ...] | None:
        """Lookup's proposal for each request. Returns None when lookup failed."""
        try:
            return control.texts.proposals(reqs, lengths, recent, self._longest)
        except Exception:  # no proposal costs time; an exception here would end the scheduler
            self._report.count_error()
            log.exception("aurora speculation: a round was decided without lookup")
            return None

    def _agreed(
        self,
        control: EngineControl,
        outlooks: Sequence[RequestOutlook],
        *,
        lookup_failed: bool = False,
        held_off: bool = False,
    ) -> Decision:
        decision = self._decide(outlooks, held_off=held_off) if control.ranks.decides else None
        return control.ranks.agree(decision, len(outlooks), lookup_failed=lookup_failed)

    def _agreed_to_draft(self, control: EngineControl) -> bool:
        """Whether the draft processes the prompts of a prefill, which is a pass of all ranks: rank 0 says so."""
        if self._runs_draft is None:
            return True
        return bool(control.ranks.share(b"1" if self._runs_draft(self._read_version()) else b""))

    def _decide(self, outlooks: Sequence[RequestOutlook], *, held_off: bool) -> Decision:
        try:
            version = self._read_version()
            if version != self._version:
                self._observer.tell_all()  # the rounds of the former draft, before it is forgotten
                self._policy.draft_serves(version)
                self._version = version
            if self._runs_draft is not None and not self._runs_draft(version):  # requests of a former draft go on
                outlooks = [outlook._replace(pending=CANNOT_DRAFT) for outlook in outlooks]
            if held_off:
                return plain_decision(len(outlooks))
            return self._policy.choose(outlooks)
        except Exception:  # a wrong choice costs time; an exception here would end the scheduler
            self._report.count_error()
            log.exception("aurora speculation: a round was decided without the controller")
            return plain_decision(len(outlooks))

    def around_cpu_lengths(self, original: Original, attn_backends: Any) -> bool:
        """Around ``decide_needs_cpu_seq_lens``: whether SGLang waits for a round's lengths before it launches the next.

        SGLang asks once, before it serves. A decision needs the lengths of all requests on the host.
        """
        return bool(original(attn_backends)) or self._control is not None

    # the draft -------------------------------------------------------------------------------------------------------

    def around_prefill_extend(
        self,
        original: Original,
        draft_worker: Any,
        batch: Any,
        target_hidden_states: Any,
        next_token_ids: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Around ``EagleDraftWorker._draft_extend_for_prefill``: leaves out a draft that is not worth running."""
        if self._control is None or self._prefill_drafts or batch.forward_mode.is_idle():
            return original(draft_worker, batch, target_hidden_states, next_token_ids, *args, **kwargs)
        return draft_input_without_draft(draft_worker, next_token_ids)

    def around_draft(self, original: Original, draft_worker: Any, batch: Any, *, with_topology: bool = False) -> Any:
        """Around ``EagleDraftWorker.draft``: proposes from the decided sources."""
        current = self._round
        if current is None or self._control is None:
            return original(draft_worker, batch, with_topology=with_topology)
        if not current.drafts:
            return lookup_verify_input(draft_worker, batch, current)
        self._control.progress.before_draft(draft_worker, batch, current)
        verify_input = original(draft_worker, batch, with_topology=with_topology)
        verify_input.draft_token = with_lookup(verify_input.draft_token, current)
        return verify_input

    def around_verify(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.verify``: tells trace capture who proposed each chain, and fetches the tokens."""
        if self._round is None or self._control is None:
            return original(worker, batch, *args, **kwargs)
        batch.spec_info.aurora_sources = self._round.decision.sources
        result = original(worker, batch, *args, **kwargs)
        if self._control.overlaps:
            self._control.results = start_copy(result)
        return result

    def around_extend(
        self, original: Original, draft_worker: Any, batch: Any, batch_result: Any, **kwargs: Any
    ) -> None:
        """Around ``EagleDraftWorker._draft_extend_for_decode``: leaves it out in a round that does not draft."""
        current = self._round
        if current is None or self._control is None or current.drafts:
            original(draft_worker, batch, batch_result, **kwargs)
            return
        self._control.progress.draft_left_out(current, batch_result)
        fill_draft_start(draft_worker, batch_result.next_draft_input, len(current.reqs))


def are_held_off(requests: Sequence[Any]) -> bool:
    """Whether all of SGLang's ``requests`` ask for no speculation, as those of a measurement of off do."""
    return all(not wish_of(request).speculate for request in requests)


def round_observer(learning: Learner, device: torch.device | str, overlaps: bool) -> RoundObserver:
    """Times rounds by the device where it works off a queue while the host goes on, and otherwise by the host."""
    if overlaps and torch.device(device).type == "cuda":
        return RoundObserver(learning, DeviceClock(device), rounds_late=1)
    return RoundObserver(learning)


def draft_input_without_draft(draft_worker: Any, next_token_ids: torch.Tensor) -> Any:
    """The next draft input of B prompts that the draft did not process. next_token_ids: [B]."""
    from sglang.srt.speculative.eagle_info import EagleDraftInput

    draft_input = EagleDraftInput(bonus_tokens=next_token_ids, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1)
    fill_draft_start(draft_worker, draft_input, len(next_token_ids))
    return draft_input


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
