"""Lookup's tokens stand in the right rows of a verify round, and every row is filled with valid tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.lookup_reference import DeviceProposals
from aurora_runtime.serving.speculation.worker.behind.device_texts import RoundOnDevice
from aurora_runtime.serving.speculation.worker.proposed_tokens import lookup_chains, lookup_tokens, with_lookup
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest, FakeSampling, a_round

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
    on_device = RoundOnDevice(
        torch.arange(2), torch.tensor([4, 4]), DeviceProposals(torch.tensor([[3, 4], [3, 4]]), torch.tensor([2, 2]))
    )
    looked_up = replace(a_round(reqs, Arm(2, drafts=True), sources=(LOOKUP, LOOKUP)), on_device=on_device)
    assert with_lookup(tokens, looked_up).tolist() == [1, 3, 4, 2, 0, 0]
    assert lookup_tokens(looked_up, "cpu").tolist() == [[3, 4], [0, 0]]


def test_where_only_the_device_knows_what_lookup_has_the_drafts_tokens_stay_if_it_has_none() -> None:
    lookups = DeviceProposals(torch.tensor([[5, 6, 7], [8, 9, 5], [0, 0, 0]]), torch.tensor([2, 2, 0]))
    current = replace(
        a_round(REQS, Arm(2, drafts=True), sources=(DRAFT, LOOKUP, LOOKUP)),
        on_device=RoundOnDevice(torch.arange(3), torch.tensor([4, 4, 4]), lookups),
    )
    assert with_lookup(torch.arange(9), current).tolist() == [0, 1, 2, 3, 8, 9, 6, 7, 8]
    assert lookup_tokens(current, "cpu").tolist() == [[5, 6], [8, 9], [0, 0]]
