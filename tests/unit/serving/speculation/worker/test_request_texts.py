"""Lookup sees each committed token once, and forgets requests that left."""

from __future__ import annotations

from aurora_runtime.serving.speculation.lookup_index import LookupIndex, LookupScope
from aurora_runtime.serving.speculation.worker.request_texts import RequestTexts
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest


def texts(scope: LookupScope = LookupScope.REQUEST) -> RequestTexts:
    return RequestTexts(LookupIndex(scope, 1000))


def test_committed_tokens_are_added_once() -> None:
    known, req = texts(), FakeRequest("r", [1, 2, 3, 4, 5], [9])
    assert known.proposals([req], 3)[0].tokens == ()
    req.output_ids += [1, 2, 3]
    for _ in range(2):
        [proposal] = known.proposals([req], 2)
        assert proposal.tokens == (4, 5)
        assert proposal.match_length == 3


def test_a_request_that_left_is_forgotten_and_may_come_back() -> None:
    known, req = texts(), FakeRequest("r", [1, 2, 3, 4], [])
    known.proposals([req], 2)
    known.ended(req)
    assert len(known) == 0
    assert known.index.tokens == 0
    req.output_ids += [9, 1, 2, 3]
    assert known.proposals([req], 1)[0].tokens == (4,), "a retracted request is prefilled again"


def test_the_last_tokens_of_a_request_reach_other_requests() -> None:
    known = texts(LookupScope.SPECULATOR)
    first, second = FakeRequest("1", [1, 2, 3], [4, 5, 6]), FakeRequest("2", [0, 4, 5], [6])
    known.proposals([first], 1)
    first.output_ids += [7, 8]
    known.ended(first)
    assert known.proposals([second], 2)[0].tokens == (7, 8)


def test_the_end_of_a_request_that_never_decoded_is_harmless() -> None:
    known = texts()
    known.ended(FakeRequest("unknown"))
    assert len(known) == 0
