"""Lookup sees each committed token once, and forgets requests that left."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation.lookup import LookupIndex, Proposal, RequestTexts
from tests.unit.serving.speculation.fake_requests import FakeRequest, FakeSampling


def texts(scope: LookupScope = LookupScope.REQUEST) -> RequestTexts:
    return RequestTexts(LookupIndex(scope, 1000))


def ask(known: RequestTexts, req: FakeRequest, tokens: int, *, ahead: Sequence[int] = ()) -> Proposal:
    """Ask for proposals when the target has committed the tokens that ``req`` holds and those ``ahead``."""
    length = len(req.origin_input_ids) + len(req.output_ids) + len(ahead) - 1
    [proposal] = known.proposals([req], [length], [ahead], tokens)
    return proposal


def test_a_request_whose_last_token_is_unknown_gets_no_proposal() -> None:
    """The first round after a prefill, under overlap scheduling."""
    known, req = texts(), FakeRequest("r", [1, 2, 3, 1, 2])
    [proposal] = known.proposals([req], [5], [()], 2)
    assert proposal.tokens == ()
    req.output_ids += [3]
    assert ask(known, req, 2).tokens == (1, 2)


def test_other_requests_are_answered_neither_from_a_request_that_refused_traces_nor_from_a_tagged_one() -> None:
    known, text = texts(LookupScope.SPECULATOR), [7, 8, 9, 10, 11]
    for rid, wish in (("refused", {"trace": False}), ("tagged", {"tag": "a"}), ("unreadable", 5)):
        private = FakeRequest(rid, text, [12], sampling_params=FakeSampling({"aurora": wish}))
        ask(known, private, 1)
        assert ask(known, FakeRequest("other", [1, 7, 8], [9]), 2).tokens == ()
        known.ended(private)
        assert known.index.tokens == 4, "only the other request is kept"
        known.ended(FakeRequest("other", [], [9]))
        known = texts(LookupScope.SPECULATOR)
    own = FakeRequest("own", [7, 8, 9, 10, 7, 8], [9], sampling_params=FakeSampling({"aurora": {"trace": False}}))
    assert ask(known, own, 1).tokens == (10,), "its own text still helps the request"


def test_a_request_is_answered_from_requests_of_its_own_tenant_only() -> None:
    known, text = texts(LookupScope.SPECULATOR), [7, 8, 9, 10, 11]
    tenants = {name: FakeSampling({"aurora": {"tenant": name}} if name else None) for name in ("", "a", "b")}
    for owner, sampling in tenants.items():
        known = texts(LookupScope.SPECULATOR)
        ask(known, FakeRequest("owner", text, [12], sampling_params=sampling), 1)
        answered = {
            name: ask(known, FakeRequest(f"of {name}", [1, 7, 8], [9], sampling_params=wish), 2).tokens
            for name, wish in tenants.items()
        }
        assert answered == {name: (10, 11) if name == owner else () for name in tenants}


@given(st.data())
def test_whatever_the_lag_lookup_has_the_committed_tokens(data: st.DataObject) -> None:
    prompt = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    known, req = texts(), FakeRequest("r", prompt, [])
    committed = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=1))
    last: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        overlaps = data.draw(st.booleans())
        req.output_ids = committed[: len(committed) - len(last)] if overlaps else list(committed)
        known.proposals([req], [len(prompt) + len(committed) - 1], [last], 2)
        if last or not overlaps:
            assert list(known.index._running["r"].tokens) == prompt + committed
        last = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        committed = committed + last


def test_a_request_that_left_is_forgotten_and_may_come_back() -> None:
    known, req = texts(), FakeRequest("r", [1, 2, 3, 4], [])
    ask(known, req, 2)
    known.ended(req)
    assert known._indexed == {}
    assert known.index.tokens == 0
    req.output_ids += [9, 1, 2, 3]
    assert ask(known, req, 1).tokens == (4,), "a retracted request is prefilled again"


def test_the_last_tokens_of_a_request_reach_other_requests() -> None:
    known = texts(LookupScope.SPECULATOR)
    first, second = FakeRequest("1", [1, 2, 3], [4, 5, 6]), FakeRequest("2", [0, 4, 5], [6])
    ask(known, first, 1)
    first.output_ids += [7, 8]
    known.ended(first)
    assert ask(known, second, 2).tokens == (7, 8)


def test_a_request_that_was_only_in_parked_rounds_answers_others_once_it_ended() -> None:
    text, private = [7, 8, 9, 10, 11], FakeSampling({"aurora": {"trace": False}})
    for scope, sampling, answers in (
        (LookupScope.SPECULATOR, FakeSampling(), True),
        (LookupScope.SPECULATOR, private, False),
        (LookupScope.REQUEST, FakeSampling(), False),
    ):
        known = texts(scope)
        known.ended(FakeRequest("parked", text[:3], text[3:], sampling_params=sampling))
        assert known.index.tokens == (len(text) if answers else 0)
        assert ask(known, FakeRequest("next", [3, *text[:3]], [10]), 1).tokens == ((11,) if answers else ())


def test_a_request_without_speculation_gets_no_proposal_and_answers_others() -> None:
    known, text = texts(LookupScope.SPECULATOR), [7, 8, 9, 10, 11]
    first = FakeRequest("first", [1, 2, 3], [*text], sampling_params=FakeSampling({"aurora": {"speculate": False}}))
    ask(known, first, 2)
    first.output_ids += text[:3]
    assert ask(known, first, 2).tokens == ()
    assert known.match_lengths([first]) == [0]
    known.ended(first)
    assert ask(known, FakeRequest("second", [*text[:3]], []), 2).tokens == (10, 11)


def test_a_look_finds_matches_in_the_text_that_the_host_has_by_now() -> None:
    known, req = texts(), FakeRequest("r", [1, 2, 3, 4, 5], [9])
    assert known.match_lengths([req, FakeRequest("s")]) == [0, 0]
    req.output_ids += [2, 3, 4]
    assert known.match_lengths([req]) == [3]
    assert ask(known, req, 2, ahead=[5]).match_length == 4, "no token was added twice"
