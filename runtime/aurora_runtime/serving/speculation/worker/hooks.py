"""The hooks that run inside SGLang's EAGLE-3 worker and carry out each round's decision.

SGLang keeps one runtime state for each number of steps (sglang/srt/speculative/adaptive_runtime_state.py). Its own rule
chooses the state by acceptance alone. These hooks choose instead, put lookup's tokens into the verify round, and leave
out the draft where it is not in use.

A round is *decided* or *parked*. A parked round is off: nobody looks up, decides, runs the draft or waits for lengths.
The last decision said how many rounds to park. A prefill that the draft processes, another range of batch sizes, or
long matches of lookup in the text of some rounds ago end the parking early. A batch that a measurement holds to off is
parked, too.

Invariants:
- Verification is SGLang's own, so answers do not depend on what is proposed. Penalties and ``min_new_tokens`` are an
  exception: SGLang counts only the last token of a round for them (``ScheduleBatch.cumulate_penalty_output_tokens``).
- The draft proposes only for a request whose prompt and rounds it has all processed. The part of the prompt that the
  prefix cache held is an exception.
- After an error in lookup the round goes on without lookup, and after one in a decision without proposals. What the
  policy does not learn because of an error is lost. Any other error is raised.
- All tensor-parallel ranks run the same passes: rank 0 decides, and what ends the parking is the same on all ranks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.estimates import size_range
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.policy import Decision, Outcome, Policy, RequestOutlook, plain_decision
from aurora_runtime.serving.speculation.report import RoundReport
from aurora_runtime.serving.speculation.worker.engine import (
    SWITCH_LOGGER,
    EngineControl,
    graphs_for,
    is_no_switch,
    obstacle_to_control,
    start_copy,
)
from aurora_runtime.serving.speculation.worker.proposed_tokens import lookup_verify_input, with_lookup
from aurora_runtime.serving.speculation.worker.rounds import Round, RoundObserver

log = logging.getLogger(__name__)

WAKE_ROUNDS: Final = 8
"""Parked rounds between two looks into the text."""
WAKE_MATCH: Final = 8
"""Tokens that must match in a look, in a quarter of the batch's requests, to end the parking."""
WAKE_SHARE: Final = 0.25

Original = Callable[..., Any]


class WorkerHooks:
    """The hooks of one scheduler process. SGLang calls all of them from one thread.

    Args:
        refuse: is told why the engine cannot be controlled. The hooks then leave every round to SGLang.
        read_version: returns the draft's version. After a load that failed on some ranks the ranks have different ones.
        runs_draft: whether the draft of this version is worth running.
    """

    def __init__(
        self,
        settings: SpeculationSettings,
        policy: Policy,
        report: RoundReport,
        *,
        refuse: Callable[[str], None],
        read_version: Callable[[], str],
        runs_draft: Callable[[str], bool] = lambda version: True,
    ) -> None:
        self._settings = settings
        self._longest = max(arm.steps for arm in settings.arms)
        self._policy = policy
        self._report = report
        self._refuse = refuse
        self._read_version = read_version
        self._runs_draft = runs_draft
        self._version: str | None = None
        self._control: EngineControl | None = None
        self._observer = RoundObserver(self._learn, self._forget)
        self._round: Round | None = None  # the decided round that runs
        self._draft_processes = True  # whether the draft processes the tokens of the last pass that began
        self._can_draft: dict[str, bool] = {}  # of each running request
        self._parked_rounds = 0  # rounds that are still to be parked
        self._parked_range = 0
        self._stock_needs_lengths = True

    # hooks: the start ------------------------------------------------------------------------------------------------

    def around_start(self, original: Original, worker: Any) -> None:
        """Around ``EAGLEWorkerV2.init_cuda_graphs``: takes control if the engine was started as the hooks need it.

        Control comes before the runtime states, because SGLang's own rule needs states that the hooks leave out.
        """
        obstacle = obstacle_to_control(worker, self._settings)
        if obstacle is not None:
            log.error("aurora speculation: rounds are not controlled, because %s", obstacle)
            self._refuse(obstacle)
            original(worker)
            return
        self._control = EngineControl(worker, self._settings)
        logging.getLogger(SWITCH_LOGGER).addFilter(is_no_switch)
        self._observer = RoundObserver(self._learn, self._forget, overlaps=self._control.overlaps)
        original(worker)
        if self._control.ranks.decides:
            self._report.start()

    def around_state(
        self,
        original: Original,
        worker: Any,
        speculative_num_steps: int,
        speculative_num_draft_tokens: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Around ``EAGLEWorkerV2.build_adaptive_runtime_state``: a wide round has no CUDA graphs of large batches."""
        graphs = contextlib.nullcontext() if self._control is None else graphs_for(speculative_num_draft_tokens)
        with graphs:
            return original(worker, speculative_num_steps, speculative_num_draft_tokens, *args, **kwargs)

    def around_draft_side(self, original: Original, draft_worker: Any) -> None:
        """Around ``EagleDraftWorker.init_attention_backend`` and ``_capture_cuda_graphs``.

        The draft proposes nothing in rounds that only lookup is wide enough for. So these have what the draft's pass
        over a round's tokens needs, and nothing for its proposals: as in SGLang's own state for one step.
        """
        steps = draft_worker.speculative_num_steps
        if self._control is None or steps <= self._settings.draft_steps:
            original(draft_worker)
            return
        draft_worker.speculative_num_steps = 1
        try:
            original(draft_worker)
        finally:
            draft_worker.speculative_num_steps = steps

    def around_cpu_lengths(self, original: Original, attn_backends: Any) -> bool:
        """Around ``decide_needs_cpu_seq_lens``, which SGLang asks once: whether the host waits for a round's lengths.

        A decision needs the lengths of all requests on the host.
        """
        self._stock_needs_lengths = bool(original(attn_backends))
        return self._stock_needs_lengths or self._control is not None

    # hooks: each pass ------------------------------------------------------------------------------------------------

    def around_lengths(self, original: Original, future_map: Any, *args: Any, **kwargs: Any) -> None:
        """Around ``FutureMap.resolve_seq_lens_cpu``: a parked round needs no lengths on the host."""
        if self._control is not None:
            future_map.needs_cpu_seq_lens = self._stock_needs_lengths or self._parked_rounds == 0
        original(future_map, *args, **kwargs)

    def around_forward(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.forward_batch_generation``: decides a decode round before it begins."""
        control = self._control
        if control is None or batch.forward_mode.is_idle() or not batch.reqs:
            return original(worker, batch, *args, **kwargs)

        run = functools.partial(original, worker, batch, *args, **kwargs)
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            return self._prefill(control, batch, run)
        return self._parked(control, batch, run) if self._is_parked(batch) else self._decided(control, batch, run)

    def around_activate(self, original: Original, worker: Any, batch_size: int) -> None:
        """In place of ``EAGLEWorkerV2.activate_step_by_batch``: the round has its state already."""
        if self._control is None:
            original(worker, batch_size)

    def around_draft(self, original: Original, draft_worker: Any, batch: Any, *, with_topology: bool = False) -> Any:
        """Around ``EagleDraftWorker.draft``: proposes from the decided sources."""
        current = self._round
        if current is None:
            return original(draft_worker, batch, with_topology=with_topology)
        if not current.decision.arm.drafts:
            return lookup_verify_input(draft_worker, batch, current)
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

    def around_verify_complete(
        self, original: Original, worker: Any, num_correct_drafts_per_req: Sequence[int], batch_size: int = 0
    ) -> None:
        """In place of ``EAGLEWorkerV2.on_verify_complete_cpu``: the accepted tokens of a round are known.

        Under overlap scheduling they have been known since the next round began.
        """
        if self._control is None:
            original(worker, num_correct_drafts_per_req, batch_size=batch_size)
        elif not self._control.overlaps:
            self._round_ended(num_correct_drafts_per_req)

    def around_extend(
        self, original: Original, draft_worker: Any, batch: Any, batch_result: Any, **kwargs: Any
    ) -> None:
        """Around ``EagleDraftWorker._draft_extend_for_decode``: leaves it out while the draft is not in use."""
        if self._draft_processes or batch.forward_mode.is_idle():
            original(draft_worker, batch, batch_result, **kwargs)
        else:
            fill_draft_start(draft_worker, batch_result.next_draft_input, len(batch.reqs))

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
        """Around ``EagleDraftWorker._draft_extend_for_prefill``: leaves it out while the draft is not in use."""
        if self._draft_processes or batch.forward_mode.is_idle():
            return original(draft_worker, batch, target_hidden_states, next_token_ids, *args, **kwargs)
        return draft_input_without_draft(draft_worker, next_token_ids)

    def around_release(self, original: Original, req: Any, tree_cache: Any, *, checkpoint: bool) -> None:
        """Around ``release_kv_cache``: a request leaves the engine, for good or to be prefilled again."""
        if self._control is not None:
            self._can_draft.pop(req.rid, None)
            with self._guarded("lookup lost the text of a request"):
                self._control.texts.ended(req)
            self._report.request_ended(req.rid)
            self._observer.request_ended(req.rid)
        original(req, tree_cache, checkpoint=checkpoint)

    # the passes ------------------------------------------------------------------------------------------------------

    def _prefill(self, control: EngineControl, batch: Any, run: Callable[[], Any]) -> Any:
        """A prefill ends the time of the last round, unless the round may still be running."""
        if not control.overlaps:
            self._observer.forward_begins()
        else:
            self._observer.interrupted()
            if self._observer.involves(batch.reqs):  # retracted: the round must not count after the prefill
                self._take_early_results(control)
        drafts = not are_held_off(batch.reqs) and self._agreed_to_draft(control, batch.reqs)
        self._draft_processes = drafts
        result = run()
        for req in batch.reqs:  # a request with an earlier chunk that the draft did not process goes without a draft
            self._can_draft[req.rid] = drafts and self._can_draft.get(req.rid, True) and wish_of(req).speculate
        if drafts:
            self._parked_rounds = 0
        return result

    def _is_parked(self, batch: Any) -> bool:
        """Whether the round is off without a decision. Counts it."""
        if are_held_off(batch.reqs):
            self._parked_rounds = 0
            return True
        parked = self._parked_rounds > 0 and size_range(len(batch.reqs)) == self._parked_range
        self._parked_rounds = self._parked_rounds - 1 if parked else 0
        return parked or batch.seq_lens_cpu is None  # no decision without lengths, which the next round has again

    def _parked(self, control: EngineControl, batch: Any, run: Callable[[], Any]) -> Any:
        self._take_early_results(control)
        self._observer.parked_round_begins()
        control.activate(0)
        self._draft_processes = False
        result = run()
        self._cannot_draft(batch.reqs)
        with self._guarded("a parked round was not counted"):
            self._report.add_parked()
            self._policy.round_parked(len(batch.reqs))
        if self._parked_rounds % WAKE_ROUNDS == 1 and self._finds_matches(control, batch.reqs):
            self._parked_rounds = 0
        return result

    def _decided(self, control: EngineControl, batch: Any, run: Callable[[], Any]) -> Any:
        recent = self._take_early_results(control)
        began = self._observer.forward_begins()
        self._round = current = self._begin(control, batch, recent, began)
        self._observer.round_begins(current)
        decision = current.decision
        self._parked_rounds, self._parked_range = decision.park_rounds, size_range(len(current.reqs))
        if not decision.keeps_draft:
            self._cannot_draft(current.reqs)
        control.activate(decision.arm.steps)
        self._draft_processes = decision.keeps_draft
        try:
            return run()
        finally:
            self._round = None

    def _cannot_draft(self, reqs: Sequence[Any]) -> None:
        """The draft misses tokens of these requests, so it cannot serve them until they end."""
        for req in reqs:
            if req.rid in self._can_draft:  # under overlap scheduling a request may have left the engine
                self._can_draft[req.rid] = False

    # the decision ----------------------------------------------------------------------------------------------------

    def _begin(self, control: EngineControl, batch: Any, recent: Mapping[str, Sequence[int]], began: float) -> Round:
        reqs, lengths = tuple(batch.reqs), tuple(batch.seq_lens_cpu.tolist())
        found = self._look_up(control, reqs, lengths, [recent.get(req.rid, ()) for req in reqs])
        proposals = found or (Proposal(),) * len(reqs)
        outlooks = tuple(
            RequestOutlook(req.rid, proposal.match_length, len(proposal.tokens), self._can_draft.get(req.rid, False))
            for req, proposal in zip(reqs, proposals, strict=True)
        )
        decision = self._decide(outlooks) if control.ranks.decides else None
        agreed = control.ranks.agree(decision, len(outlooks), lookup_failed=found is None)
        return Round(agreed, outlooks, proposals, reqs, lengths, began)

    def _look_up(
        self, control: EngineControl, reqs: Sequence[Any], lengths: Sequence[int], recent: Sequence[Sequence[int]]
    ) -> tuple[Proposal, ...] | None:
        """Lookup's proposal for each request. Returns None when lookup failed."""
        with self._guarded("a round was decided without lookup"):
            return control.texts.proposals(reqs, lengths, recent, self._longest)
        return None

    def _decide(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        with self._guarded("a round was decided without the controller"):
            if self._draft_serves():
                return self._policy.choose(outlooks)
            without = [outlook._replace(can_draft=False) for outlook in outlooks]
            return replace(self._policy.choose(without), keeps_draft=False)
        return plain_decision(len(outlooks))

    def _draft_serves(self) -> bool:
        """Whether the draft that serves now is worth running. Tells the policy about another draft."""
        version = self._read_version()
        runs = self._runs_draft(version)
        if version != self._version:
            self._policy.draft_serves(version if runs else None)
            self._version = version
        return runs

    def _agreed_to_draft(self, control: EngineControl, reqs: Sequence[Any]) -> bool:
        """Whether the draft processes the prompts of a prefill, which is a pass of all ranks: rank 0 says so."""
        wanted = False
        if control.ranks.decides:
            with self._guarded("a prompt was prefilled without the draft"):
                goes_on = any(self._can_draft.get(req.rid, False) for req in reqs)  # with an earlier chunk
                wanted = self._draft_serves() and (self._policy.prefill_drafts() or goes_on)
        return bool(control.ranks.share(b"1" if wanted else b""))

    def _finds_matches(self, control: EngineControl, reqs: Sequence[Any]) -> bool:
        """Whether lookup finds long matches for a share of the requests, in the text that the host has by now."""
        with self._guarded("lookup did not look while the controller was parked"):
            lengths = control.texts.match_lengths(reqs)
            return sum(length >= WAKE_MATCH for length in lengths) >= max(1.0, WAKE_SHARE * len(lengths))
        return False

    # what came of it -------------------------------------------------------------------------------------------------

    def _take_early_results(self, control: EngineControl) -> Mapping[str, Sequence[int]]:
        """Under overlap scheduling: end the last round. Returns its tokens by request."""
        results, control.results = control.results, None
        if results is None:
            return {}
        committed = results.committed()
        ended = self._round_ended([len(tokens) - 1 for tokens in committed], committed)
        if ended is None:
            return {}
        return {req.rid: tokens for req, tokens in zip(ended.reqs, committed, strict=True)}

    def _round_ended(self, accepted: Sequence[int], committed: Sequence[Sequence[int]] = ()) -> Round | None:
        ended = self._observer.round_ended(accepted, committed)
        if ended is not None:
            with self._guarded("a round was not counted"):
                self._report.add(ended, accepted)
        return ended

    def _learn(self, outcome: Outcome) -> None:
        with self._guarded("a round was not learned from"):
            self._policy.observe(outcome)

    def _forget(self, rid: str) -> None:
        with self._guarded("a request was not forgotten"):
            self._policy.request_ended(rid)

    @contextlib.contextmanager
    def _guarded(self, loss: str) -> Iterator[None]:
        """An error costs what ``loss`` says, and no more: an exception here would end the scheduler."""
        try:
            yield
        except Exception:
            self._report.errors += 1
            log.exception("aurora speculation: %s", loss)


def are_held_off(requests: Sequence[Any]) -> bool:
    """Whether all of SGLang's ``requests`` ask for no speculation, as those of a measurement of off do."""
    return all(not wish_of(request).speculate for request in requests)


def draft_input_without_draft(draft_worker: Any, next_token_ids: torch.Tensor) -> Any:
    """The next draft input of B prompts that the draft did not process. next_token_ids: [B]."""
    from sglang.srt.speculative.eagle_info import EagleDraftInput

    draft_input = EagleDraftInput(bonus_tokens=next_token_ids, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1)
    fill_draft_start(draft_worker, draft_input, len(next_token_ids))
    return draft_input


def fill_draft_start(draft_worker: Any, draft_input: Any, requests: int) -> None:
    """Give the next draft input tensors of the right shapes. A request that starts from them cannot draft.

    The scheduler filters and merges them with the batch (sglang/srt/speculative/eagle_info.py:235).
    """
    from sglang.srt.speculative.eagle_utils import get_draft_recurrent_hidden_state_spec

    width, dtype = get_draft_recurrent_hidden_state_spec(draft_worker.draft_runner)
    device = draft_worker.device
    draft_input.topk_p = torch.zeros((requests, 1), dtype=torch.float32, device=device)
    draft_input.topk_index = torch.zeros((requests, 1), dtype=torch.int64, device=device)
    draft_input.hidden_states = torch.zeros((requests, width), dtype=dtype, device=device)
