"""Lookup's tokens stand in the right rows of a verify round, and every row is filled with valid tokens."""

from __future__ import annotations

import torch

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.engine import lookup_chains, with_lookup
from aurora_runtime.serving.speculation.lookup import Proposal
from tests.unit.serving.speculation.fake_requests import FakeRequest, FakeSampling, a_round

DRAFT, LOOKUP, NONE = Source.DRAFT, Source.LOOKUP, Source.NONE
REQS = [FakeRequest(name) for name in "abc"]
PROPOSALS = [Proposal((5, 6, 7, 8), 2), Proposal((9,), 2), Proposal()]


def test_proposals_are_cut_or_filled_to_the_rounds_width() -> None:
    current = a_round(REQS, Arm(3, drafts=False), proposals=PROPOSALS)
    assert lookup_chains(current) == [[5, 6, 7], [9, 9, 9], [0, 0, 0]]


def test_only_the_rows_of_lookup_are_replaced() -> None:
    draft_token = torch.arange(9)
    current = a_round(REQS, Arm(2, drafts=True), sources=(DRAFT, LOOKUP, NONE), proposals=PROPOSALS)
    assert with_lookup(draft_token, current).tolist() == [0, 1, 2, 3, 9, 9, 6, 7, 8]
    assert draft_token.tolist() == list(range(9)), "SGLang may use the tensor again"


def test_a_round_of_the_draft_alone_is_left_as_it_is() -> None:
    draft_token = torch.arange(9)
    assert with_lookup(draft_token, a_round(REQS, Arm(2, drafts=True), proposals=PROPOSALS)) is draft_token


def test_a_request_that_asks_for_no_speculation_gets_fillers_whoever_proposes() -> None:
    reqs = [FakeRequest("a"), FakeRequest("b", sampling_params=FakeSampling({"aurora": {"speculate": False}}))]
    tokens = torch.tensor([1, 5, 6, 2, 7, 8])
    assert with_lookup(tokens, a_round(reqs, Arm(2, drafts=True))).tolist() == [1, 5, 6, 2, 0, 0]
    looked_up = a_round(reqs, Arm(2, drafts=True), sources=(LOOKUP, LOOKUP), proposals=(Proposal((3, 4)), Proposal()))
    assert with_lookup(tokens, looked_up).tolist() == [1, 3, 4, 2, 0, 0]
    assert lookup_chains(looked_up) == [[3, 4], [0, 0]]
