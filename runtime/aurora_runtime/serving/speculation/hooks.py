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
- An error of ours fails no request. It ends the controller: SGLang's own function does the rest of the hook, and from
  the next round on every round is off, until the engine starts again. An error of SGLang's own is raised.
- All tensor-parallel ranks run the same passes: rank 0 decides, and what ends the parking is the same on all ranks.
  After an error on one rank that changes its passes in the middle of a round, SGLang's watchdog ends the engine.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.controller import Controller
from aurora_runtime.serving.speculation.engine import (
    SKIP_EXTEND_VARIABLE,
    EngineControl,
    decode,
    encode,
    lookup_verify_input,
    obstacle_to_control,
    start_copy,
    with_lookup,
)
from aurora_runtime.serving.speculation.estimates import size_range
from aurora_runtime.serving.speculation.lookup import Proposal
from aurora_runtime.serving.speculation.report import RoundReport
from aurora_runtime.serving.speculation.rounds import (
    Outcome,
    RequestOutlook,
    Round,
    RoundObserver,
    plain_decision,
)

log = logging.getLogger(__name__)

WAKE_ROUNDS: Final = 8
"""Parked rounds between two looks into the text."""
WAKE_MATCH: Final = 8
"""Tokens that must match in a look, in a quarter of the batch's requests, to end the parking."""
WAKE_SHARE: Final = 0.25

Original = Callable[..., Any]


def off_round(hooks: WorkerHooks, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of :meth:`WorkerHooks.around_forward`: a round of off, or a prefill."""
    assert hooks._control is not None
    hooks._control.activate(0)
    return original(worker, batch, *args, **kwargs)


def bare_round(hooks: WorkerHooks, _: Original, draft_worker: Any, batch: Any, **kwargs: Any) -> Any:
    """In place of :meth:`WorkerHooks.around_draft`: the round goes on as one of off."""
    assert hooks._control is not None
    hooks._round = None
    hooks._control.activate(0)
    return hooks._control.worker._build_trivial_verify_input(batch)


def nothing(*_: Any, **__: Any) -> None:
    """In place of a hook that replaces SGLang's own rule."""


def fused(instead: Callable[..., Any] | None = None) -> Callable[[Original], Original]:
    """Decorates a hook: after an error of its own, ``instead`` serves the call and all later ones.

    Without ``instead``, or as long as nothing is controlled, that is SGLang's own function. It is not run twice: if it
    has returned when the error comes, its result is the call's.
    """

    def decorate(hook: Original) -> Original:
        @functools.wraps(hook)
        def run(hooks: WorkerHooks, original: Original, *args: Any, **kwargs: Any) -> Any:
            progress = list[Any]()  # of SGLang's own function: empty, then it runs, then its result

            def stock(*given: Any, **named: Any) -> Any:
                progress.append("runs")
                progress.append(original(*given, **named))
                return progress[-1]

            if not hooks._held:
                try:
                    return hook(hooks, stock, *args, **kwargs)
                except Exception as error:
                    if len(progress) == 1:  # its own error
                        raise
                    hooks._failed_in(hook.__name__, error)
            if progress:
                return progress[-1]
            if instead is None or hooks._control is None:
                return original(*args, **kwargs)
            return instead(hooks, original, *args, **kwargs)

        return run

    return decorate


class WorkerHooks:
    """The hooks of one scheduler process. SGLang calls all of them from one thread.

    Args:
        refuse: is told why the engine cannot be controlled. The hooks then leave every round to SGLang.
        read_version: returns the draft's version. After a load that failed on some ranks the ranks have different ones.
    """

    def __init__(
        self,
        settings: SpeculationSettings,
        controller: Controller,
        report: RoundReport,
        *,
        refuse: Callable[[str], None],
        read_version: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._longest = max(arm.steps for arm in settings.arms)
        self._controller = controller
        self._report = report
        self._refuse = refuse
        self._read_version = read_version
        self._version = ""
        self._control: EngineControl | None = None
        self._observer = RoundObserver(self._observe, controller.request_ended)
        self._round: Round | None = None  # the decided round that runs
        self._draft_processes = True  # whether the draft processes the tokens of the last pass that began
        self._can_draft: dict[str, bool] = {}  # of each running request
        self._parked_rounds = 0  # rounds that are still to be parked
        self._parked_range = 0
        self._stock_needs_lengths = True
        self._failed = False  # whether this rank had an error of ours
        self._held = False  # whether every round is off, because a rank had one

    # hooks: the start ------------------------------------------------------------------------------------------------

    @fused()
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
        fixed = bool(self._settings.fixed_arms)  # every round has the first state's width, at every batch size
        with contextlib.nullcontext() if fixed else self._control.graphs_for(worker.speculative_num_draft_tokens):
            original(worker)
        if self._control.ranks.decides:
            self._report.start()

    @fused()
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
        control, width = self._control, speculative_num_draft_tokens
        with contextlib.nullcontext() if control is None else control.graphs_for(width):
            return original(worker, speculative_num_steps, speculative_num_draft_tokens, *args, **kwargs)

    @fused()
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

    @fused()
    def around_cpu_lengths(self, original: Original, attn_backends: Any) -> bool:
        """Around ``decide_needs_cpu_seq_lens``, which SGLang asks once: whether the host waits for a round's lengths.

        A decision needs the lengths of all requests on the host.
        """
        self._stock_needs_lengths = bool(original(attn_backends))
        return self._stock_needs_lengths or self._control is not None

    # hooks: each pass ------------------------------------------------------------------------------------------------

    @fused()
    def around_lengths(self, original: Original, future_map: Any, *args: Any, **kwargs: Any) -> None:
        """Around ``FutureMap.resolve_seq_lens_cpu``: a parked round needs no lengths on the host."""
        if self._control is not None:
            future_map.needs_cpu_seq_lens = self._stock_needs_lengths or self._parked_rounds == 0
        original(future_map, *args, **kwargs)

    @fused(off_round)
    def around_forward(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.forward_batch_generation``: decides a decode round before it begins."""
        control = self._control
        if control is None or batch.forward_mode.is_idle() or not batch.reqs:
            return original(worker, batch, *args, **kwargs)

        run = functools.partial(original, worker, batch, *args, **kwargs)
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            return self._prefill(control, batch, run)
        return self._parked(control, batch, run) if self._is_parked(batch) else self._decided(control, batch, run)

    @fused(nothing)
    def around_rule(self, original: Original, *args: Any, **kwargs: Any) -> None:
        """In place of ``EAGLEWorkerV2.activate_step_by_batch`` and ``on_verify_complete_cpu``: SGLang's own rule."""
        if self._control is None:
            original(*args, **kwargs)

    @fused(bare_round)
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

    @fused()
    def around_verify(self, original: Original, worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Around ``EAGLEWorkerV2.verify``: tells trace capture who proposed each chain, and fetches the tokens."""
        if self._round is None or self._control is None:
            return original(worker, batch, *args, **kwargs)
        batch.spec_info.aurora_sources = self._round.decision.sources
        result = original(worker, batch, *args, **kwargs)
        self._control.results = start_copy(result)
        return result

    @fused()
    def around_extend(
        self, original: Original, draft_worker: Any, batch: Any, batch_result: Any, **kwargs: Any
    ) -> None:
        """Around ``EagleDraftWorker._draft_extend_for_decode``: leaves it out while the draft is not in use."""
        if self._draft_processes or batch.forward_mode.is_idle():
            original(draft_worker, batch, batch_result, **kwargs)
        else:
            fill_draft_start(draft_worker, batch_result.next_draft_input, len(batch.reqs))

    @fused()
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

    @fused()
    def around_release(self, original: Original, req: Any, tree_cache: Any, *, checkpoint: bool) -> None:
        """Around ``release_kv_cache``: a request leaves the engine, for good or to be prefilled again."""
        if self._control is not None:
            self._can_draft.pop(req.rid, None)
            self._control.texts.ended(req)
            self._observer.request_ended(req.rid)
        original(req, tree_cache, checkpoint=checkpoint)

    # the passes ------------------------------------------------------------------------------------------------------

    def _prefill(self, control: EngineControl, batch: Any, run: Callable[[], Any]) -> Any:
        """A prefill ends the time of the last round, unless the round may still be running."""
        if not control.overlaps:
            self._take_results(control)
            self._observer.forward_begins()
        else:
            self._observer.interrupted()
            if self._observer.involves(batch.reqs):  # retracted: the round must not count after the prefill
                self._take_results(control)
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
        self._take_results(control)
        self._observer.forward_begins()
        control.activate(0)
        self._draft_processes = False
        result = run()
        self._cannot_draft(batch.reqs)
        self._report.add_parked()
        self._controller.round_parked(len(batch.reqs))
        if self._parked_rounds % WAKE_ROUNDS == 1 and self._finds_matches(control, batch.reqs):
            self._parked_rounds = 0
        return result

    def _decided(self, control: EngineControl, batch: Any, run: Callable[[], Any]) -> Any:
        recent = self._take_results(control)
        began = self._observer.forward_begins()
        current = self._begin(control, batch, recent, began)
        if self._held:
            control.activate(0)
            return run()
        self._observer.round_begins(current)
        decision = current.decision
        self._parked_rounds, self._parked_range = decision.park_rounds, size_range(len(current.reqs))
        if not decision.keeps_draft:
            self._cannot_draft(current.reqs)
        control.activate(decision.arm.steps)
        self._draft_processes, self._round = decision.keeps_draft, current
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
        """Decide a round. After an error that ranks may have alone they still agree, so that all of them hear of it."""
        reqs, lengths = tuple(batch.reqs), tuple(batch.seq_lens_cpu.tolist())
        proposals = (Proposal(),) * len(reqs)
        with self._contained("lookup"):
            tokens = [recent.get(req.rid, ()) for req in reqs]
            proposals = control.texts.proposals(reqs, lengths, tokens, self._longest)
        outlooks = tuple(
            RequestOutlook(req.rid, proposal.match_length, len(proposal.tokens), self._can_draft.get(req.rid, False))
            for req, proposal in zip(reqs, proposals, strict=True)
        )
        decision = plain_decision(len(outlooks))
        if control.ranks.decides:
            with self._contained("a decision"):
                self._follow_draft()
                decision = self._controller.choose(outlooks)
        return Round(decode(self._agree(control, encode(decision))), outlooks, proposals, reqs, lengths, began)

    def _agree(self, control: EngineControl, numbers: Sequence[int]) -> list[int]:
        """What rank 0 says. If any rank failed, all of them hold every round to off from now on."""
        agreed, failed = control.ranks.agree(numbers, failed=self._failed)
        if failed:
            self._hold()
        return agreed

    def _follow_draft(self) -> None:
        """Tell the controller about another draft, and about one that is not worth running."""
        version = self._read_version()
        if version != self._version:
            runs = version not in map(str, self._settings.untrained_versions)
            self._controller.draft_serves(version if runs else None)
            self._version = version

    def _agreed_to_draft(self, control: EngineControl, reqs: Sequence[Any]) -> bool:
        """Whether the draft processes the prompts of a prefill, which is a pass of all ranks: rank 0 says so."""
        wanted = False
        if control.ranks.decides:
            with self._contained("a prefill"):
                goes_on = any(self._can_draft.get(req.rid, False) for req in reqs)  # with an earlier chunk
                self._follow_draft()
                wanted = self._controller.prefill_drafts() or goes_on
        return bool(self._agree(control, [int(wanted)])[0])

    @staticmethod
    def _finds_matches(control: EngineControl, reqs: Sequence[Any]) -> bool:
        """Whether lookup finds long matches for a share of the requests, in the text that the host has by now."""
        lengths = control.texts.match_lengths(reqs)
        return sum(length >= WAKE_MATCH for length in lengths) >= max(1.0, WAKE_SHARE * len(lengths))

    # what came of it -------------------------------------------------------------------------------------------------

    def _take_results(self, control: EngineControl) -> Mapping[str, Sequence[int]]:
        """End the last round. Returns its tokens by request, which under overlap scheduling the requests lack."""
        results, control.results = control.results, None
        if results is None:
            return {}
        committed = results()
        ended = self._observer.round_ended(committed)
        return {} if ended is None else {req.rid: tokens for req, tokens in zip(ended.reqs, committed, strict=True)}

    def _observe(self, ended: Round, outcome: Outcome) -> None:
        self._controller.observe(outcome)
        self._report.add(ended, outcome)

    # errors of ours --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _contained(self, place: str) -> Iterator[None]:
        """An error here must not keep this rank from the agreement that follows."""
        try:
            yield
        except Exception as error:
            self._failed_in(place, error)

    def _failed_in(self, place: str, error: Exception) -> None:
        """End the controller: now with a single rank, else when the ranks agree the next time."""
        self._report.errors += 1
        if not self._failed:  # an error's message may hold a client's text
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error(
                "aurora speculation: %s failed, so every round is off: %s\n%s", place, type(error).__name__, frames
            )
        self._failed = True
        if self._control is None:
            with contextlib.suppress(OSError):  # a full disk
                self._refuse(f"{place} failed with {type(error).__name__}")
        if self._control is None or self._control.ranks.is_single:
            self._hold()

    def _hold(self) -> None:
        """No hook runs any more. SGLang itself then leaves the draft out of rounds of off."""
        self._held = True
        os.environ[SKIP_EXTEND_VARIABLE] = "1"


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
