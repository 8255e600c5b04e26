"""The draft catches up exactly when it must, and what it gets are the committed tokens that it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_runtime.engine.arms import OFF, Arm
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT
from aurora_runtime.serving.speculation.worker import draft_progress
from aurora_runtime.serving.speculation.worker.draft_catch_up import DraftStart, LateRequest
from aurora_runtime.serving.speculation.worker.draft_progress import PASS_TOKENS, ROUNDS_IN_USE, DraftProgress
from aurora_runtime.serving.speculation.worker.pending_tokens import BufferShape, CatchUpInput, PendingTokens
from aurora_runtime.serving.speculation.worker.rounds import Round
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest, FakeSampling, a_round

DRAFT = Arm(3, drafts=True)
LOOKUP = Arm(3, drafts=False)
MOST = 12
CAPACITY = MOST - DRAFT.width


class Rig:
    """A progress whose passes of the draft are recorded instead of run."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        memory: bool = True,
        single_rank: bool = True,
        pages: int | None = None,
    ) -> None:
        budget = None if pages is None else pages * 4 * 12
        shape = BufferShape(4, 4, 1, torch.float32, budget, request_tokens=MOST, page_tokens=4)
        self.buffer = PendingTokens(shape, "cpu")
        self.progress = DraftProgress(self.buffer, single_rank=single_rank)
        self.passes: list[tuple[list[LateRequest], list[int]]] = []
        self.memory = memory
        monkeypatch.setattr(draft_progress, "catch_up", self._catch_up)
        monkeypatch.setattr(draft_progress, "draft_contexts", lambda _: nullcontext())

    def _catch_up(self, _: Any, batch: Any, late: Sequence[LateRequest], inputs: CatchUpInput) -> DraftStart:
        if not self.memory:
            raise torch.OutOfMemoryError
        self.passes.append((list(late), inputs.tokens.tolist()))
        rows = torch.tensor([[request.length] for request in late])
        return DraftStart(rows.float(), rows, rows.float())

    def run(self, current: Round, accepted: Sequence[int], first_token: int = 100) -> Any:
        """One round, as the worker's hooks run it. Returns the batch's draft input."""
        size, width = len(current.reqs), current.decision.arm.width
        spec_info = draft_input(size)
        batch = SimpleNamespace(spec_info=spec_info)
        self.ran_between = self.progress.round_begins(None, batch, current)
        if current.drafts:
            self.progress.before_draft(None, batch, current)
        else:
            tokens = torch.arange(size * width) + first_token
            states = SimpleNamespace(hidden_states=tokens.float().unsqueeze(-1))
            self.progress.draft_left_out(current, SimpleNamespace(next_token_ids=tokens, logits_output=states))
        self.progress.committed(current, accepted)
        return spec_info


def draft_input(size: int) -> Any:
    zeros = torch.zeros(size, 1)
    return SimpleNamespace(topk_p=zeros, topk_index=zeros.long(), hidden_states=zeros)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def test_a_drafting_round_first_processes_what_other_rounds_committed(rig: Rig) -> None:
    one, two = FakeRequest("one"), FakeRequest("two")
    rig.run(a_round([one, two], OFF, lengths=[10, 20]), [0, 0], first_token=100)
    rig.run(a_round([one, two], LOOKUP, lengths=[11, 21]), [2, 0], first_token=200)
    assert (rig.progress.pending("one"), rig.progress.pending("two")) == (4, 2)
    start = rig.run(a_round([one, two], DRAFT, lengths=[14, 22]), [0, 0])
    [(late, tokens)] = rig.passes
    assert [(request.row, request.length, request.pending) for request in late] == [(0, 14, 4), (1, 22, 2)]
    assert tokens == [100, 200, 201, 202, 101, 204]
    assert start.topk_index.tolist() == [[14], [22]]
    rig.run(a_round([one, two], DRAFT, lengths=[15, 23]), [0, 0])
    assert len(rig.passes) == 1, "a draft that has caught up has nothing to do"


def test_requests_that_are_not_behind_keep_their_start(rig: Rig) -> None:
    behind, new = FakeRequest("behind"), FakeRequest("new")
    rig.run(a_round([behind], OFF), [0])
    start = rig.run(a_round([behind, new], DRAFT, lengths=[11, 5]), [0, 0])
    assert start.topk_index.tolist() == [[11], [0]]


def test_a_prefill_processes_everything(rig: Rig) -> None:
    req = FakeRequest("r")
    rig.run(a_round([req], OFF), [0])
    rig.progress.prefilled([req], drafted=True)
    assert rig.progress.pending("r") == 0


def test_a_prompt_that_the_draft_did_not_process_goes_without_the_draft_to_its_end(rig: Rig) -> None:
    every, req = len(rig.buffer._free), FakeRequest("r")
    rig.progress.prefilled([req], drafted=False)
    rig.run(a_round([req], OFF), [0])
    rig.run(a_round([req], DRAFT, lengths=[11]), [0])
    assert rig.passes == []
    assert len(rig.buffer._free) == every, "nothing is kept for it"
    assert rig.progress.pending("r") == CANNOT_DRAFT
    rig.progress.ended(req.rid)
    rig.progress.prefilled([req], drafted=True)
    assert rig.progress.pending("r") == 0, "it was retracted and is prefilled again"


def test_a_prompt_of_which_the_draft_lacks_a_chunk_goes_without_the_draft(rig: Rig) -> None:
    req = FakeRequest("r")
    rig.progress.prefilled([req], drafted=False)
    rig.progress.prefilled([req], drafted=True)
    assert rig.progress.pending("r") == CANNOT_DRAFT


def test_a_draft_that_is_not_in_use_gives_up_a_request_with_a_full_buffer(rig: Rig) -> None:
    req = FakeRequest("r")
    for length in range(MOST):
        rig.run(a_round([req], OFF, lengths=[10 + length]), [0])
    assert rig.progress.pending("r") == MOST
    rig.run(a_round([req], OFF, lengths=[10 + MOST]), [0])
    assert rig.progress.pending("r") == CANNOT_DRAFT
    rig.run(a_round([req], DRAFT), [0])
    assert rig.passes == []
    assert rig.progress.pending("r") == CANNOT_DRAFT, "its draft KV cache keeps a gap"
    rig.progress.ended(req.rid)
    rig.progress.prefilled([req], drafted=True)
    assert rig.progress.pending("r") == 0, "a retracted request is prefilled again"


def test_a_draft_in_use_catches_up_when_a_buffer_is_full(rig: Rig) -> None:
    req = FakeRequest("r")
    rig.run(a_round([req], DRAFT), [0])
    for length in range(CAPACITY + 2):
        rig.run(a_round([req], OFF, lengths=[11 + length]), [0])
        assert rig.ran_between is (length == CAPACITY + 1), "the round's time would count for the wrong arm"
    [(late, _)] = rig.passes
    assert (late[0].length, late[0].pending) == (11 + CAPACITY + 1, CAPACITY + 1)
    assert rig.progress.pending("r") == 1


def test_without_pages_a_request_of_an_unused_draft_is_given_up_and_its_pages_serve_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(monkeypatch, pages=5)
    reqs = [FakeRequest(name) for name in "abc"]
    for length in range(8):
        rig.run(a_round(reqs[:2], OFF, lengths=[10 + length] * 2), [0, 0])
    assert len(rig.buffer._free) == 1
    rig.run(a_round(reqs, OFF, lengths=[18, 18, 10]), [0, 0, 0])
    assert [rig.progress.pending(req.rid) for req in reqs] == [9, CANNOT_DRAFT, 1]
    assert len(rig.buffer._free) == 1


def test_requests_of_a_draft_in_use_catch_up_at_their_share_of_few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, pages=8)
    reqs = [FakeRequest(name) for name in "abcd"]
    rig.run(a_round(reqs, DRAFT), [0] * 4)
    for length in range(30):
        rig.run(a_round(reqs, LOOKUP, lengths=[11 + length] * 4), [0] * 4)
        assert all(rig.progress.pending(req.rid) > 0 for req in reqs)
    assert rig.passes


def test_requests_that_left_hold_no_pages(rig: Rig) -> None:
    every = len(rig.buffer._free)
    reqs = [FakeRequest("ends"), FakeRequest("is prefilled again"), FakeRequest("catches up"), FakeRequest("ended")]
    reqs[3].ended = True
    rig.run(a_round(reqs, OFF), [0] * 4)
    assert len(rig.buffer._free) == every - 3
    rig.progress.ended(reqs[0].rid)
    rig.progress.prefilled([reqs[1]], drafted=True)
    rig.progress.before_draft(
        None, SimpleNamespace(spec_info=draft_input(1)), a_round([reqs[2]], DRAFT, lengths=[11], rows=[2])
    )
    assert len(rig.buffer._free) == every


def test_a_request_whose_length_is_not_what_its_rounds_add_up_to_is_given_up(rig: Rig) -> None:
    req = FakeRequest("r")
    rig.run(a_round([req], OFF, lengths=[10]), [0])
    rig.run(a_round([req], DRAFT, lengths=[15]), [0])
    assert rig.passes == []
    assert rig.progress.pending("r") == CANNOT_DRAFT


def test_a_round_after_a_requests_last_one_is_ignored(rig: Rig) -> None:
    """Under overlap scheduling it was launched before the request's end was known."""
    req = FakeRequest("r")
    rig.run(a_round([req], OFF, lengths=[10]), [0])
    rig.progress.ended(req.rid)
    req.ended = True
    rig.run(a_round([req], OFF, lengths=[11]), [0])
    assert rig.progress.pending("r") == 0


def test_exploring_does_not_put_the_draft_in_use_and_disuse_ends(rig: Rig) -> None:
    req = FakeRequest("r")
    rig.run(a_round([req], DRAFT, explores=True), [0])
    assert not rig.progress.in_use
    rig.run(a_round([req], DRAFT), [0])
    for _ in range(ROUNDS_IN_USE - 1):
        rig.progress.round_begins(None, None, a_round([req], OFF))
    assert rig.progress.in_use
    rig.progress.round_begins(None, None, a_round([req], OFF))
    assert not rig.progress.in_use


def test_without_memory_requests_go_on_without_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, memory=False)
    req = FakeRequest("r")
    rig.run(a_round([req], OFF), [0])
    rig.run(a_round([req], DRAFT, lengths=[11]), [0])
    assert rig.progress.pending("r") == CANNOT_DRAFT


def test_one_of_several_ranks_that_lacks_memory_does_not_leave_the_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, memory=False, single_rank=False)
    req = FakeRequest("r")
    rig.run(a_round([req], OFF), [0])
    with pytest.raises(torch.OutOfMemoryError):
        rig.run(a_round([req], DRAFT, lengths=[11]), [0])


def test_passes_are_bounded_and_keep_the_order() -> None:
    late = [LateRequest(None, row, 0, pending) for row, pending in enumerate((1500, 600, 5000, 10, 20))]
    passes = draft_progress._passes(late)
    assert [[request.row for request in group] for group in passes] == [[0], [1], [2], [3, 4]]
    assert all(len(group) == 1 or sum(r.pending for r in group) <= PASS_TOKENS for group in passes)


def test_a_request_that_asks_for_no_speculation_goes_without_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    without = FakeRequest("without", sampling_params=FakeSampling({"aurora": {"speculate": False}}))
    rig.progress.prefilled([without, FakeRequest("with")], drafted=True)
    assert [rig.progress.pending(rid) for rid in ("without", "with")] == [CANNOT_DRAFT, 0]
