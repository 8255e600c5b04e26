"""The policy hears of every round once, with a time only where the time is the round's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aurora_runtime.engine.arms import OFF, Arm
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from aurora_runtime.serving.speculation.worker.rounds import HostClock, RoundObserver
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest, a_round


class Listener(FixedArms):
    """A policy that records what it is told."""

    def __init__(self) -> None:
        super().__init__(["off"])
        self.heard: list[Any] = []
        self.matching: tuple[int, ...] = ()
        self.made: tuple[int, ...] = ()

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None:
        self.heard.append((decision.arm, tuple(accepted), milliseconds))
        self.matching = tuple(unplayed_lookup)
        self.made = tuple(tokens_made)

    def request_ended(self, rid: str) -> None:
        self.heard.append(rid)


class Clock(HostClock):
    now = 0.0

    def stamp(self) -> float:
        return self.now


def test_a_rounds_time_ends_when_the_next_forward_pass_begins() -> None:
    policy, clock = Listener(), Clock()
    observer, req = RoundObserver(policy, clock), FakeRequest("r")
    began = observer.forward_begins()
    observer.round_begins(a_round([req], Arm(2, drafts=False), began=began))
    assert observer.round_ended([2]) is not None
    assert policy.heard == []
    clock.now = 0.25
    observer.forward_begins()
    assert policy.heard == [(Arm(2, drafts=False), (2,), 250.0)]
    observer.forward_begins()
    assert len(policy.heard) == 1


def test_the_time_is_unknown_when_the_engine_may_have_waited() -> None:
    policy, clock = Listener(), Clock()
    observer, req = RoundObserver(policy, clock), FakeRequest("r", ended=True)
    observer.round_begins(a_round([req], OFF))
    observer.round_ended([0])
    clock.now = 9.0
    observer.request_ended("r")
    observer.forward_begins()
    assert policy.heard == [(OFF, (0,), None), "r"], "the end of a request follows its last round"


def test_a_round_is_told_late_where_its_end_is_not_known_yet_and_at_once_before_another_draft() -> None:
    policy, clock = Listener(), Clock()
    observer = RoundObserver(policy, clock, rounds_late=1)
    for number in range(3):
        clock.now = number / 4
        reqs = [FakeRequest("r"), FakeRequest(f"after {number}")]
        observer.round_begins(a_round(reqs, OFF, began=observer.forward_begins()))
        observer.round_ended([0, 0])
        observer.request_ended(f"after {number}")
        assert len(policy.heard) == 2 * max(0, number - 1)
    clock.now = 1.0
    observer.forward_begins()
    assert policy.heard == [(OFF, (0, 0), 250.0), "after 0", (OFF, (0, 0), 250.0), "after 1"]
    observer.tell_all()
    assert policy.heard[4:] == [(OFF, (0, 0), 500.0), "after 2"]


def test_a_request_that_takes_part_in_no_round_ends_at_once() -> None:
    """Requests for scores end with their prefill, and for hours no decode round may come."""
    policy = Listener()
    observer = RoundObserver(policy, Clock(), rounds_late=1)
    observer.round_begins(a_round([FakeRequest("r")], OFF, began=observer.forward_begins()))
    observer.request_ended("scored")
    observer.request_ended("r")
    assert policy.heard == ["scored"]


def test_a_round_whose_results_were_lost_is_not_observed() -> None:
    policy = Listener()
    observer, reqs = RoundObserver(policy, Clock()), [FakeRequest("a"), FakeRequest("b")]
    observer.round_begins(a_round(reqs, OFF))
    assert observer.round_ended([0]) is None
    observer.forward_begins()
    assert observer.round_ended([0, 0]) is None
    assert policy.heard == []


def test_the_policy_hears_how_much_of_a_lookup_was_right_that_the_round_did_not_use() -> None:
    """Once with the tokens in the requests, and once with tokens that the requests do not have yet."""
    policy = Listener()
    observer = RoundObserver(policy, Clock())
    reqs = [FakeRequest("a", output_ids=[7]), FakeRequest("b", output_ids=[7]), FakeRequest("c", output_ids=[7])]
    proposals = [Proposal((8, 9, 1), 4), Proposal((5, 6), 4), Proposal()]
    for arm, committed in ((Arm(2, drafts=True), [[8, 9], [6], [8]]), (OFF, [[8], [5], [8]])):
        lengths = [2 + len(req.output_ids) for req in reqs]
        observer.round_begins(a_round(reqs, arm, proposals=proposals, lengths=lengths))
        accepted = [len(tokens) - 1 for tokens in committed]
        observer.round_ended(accepted, committed if arm == OFF else ())
        if arm != OFF:
            for req, tokens in zip(reqs, committed, strict=True):
                req.output_ids += tokens
        observer.forward_begins()
        assert policy.matching == ((2, 0, 0) if arm != OFF else (1, 1, 0))


def test_the_policy_hears_how_many_tokens_of_the_last_rounds_an_answer_took() -> None:
    """The first answer stopped before the round, the second in its middle, the third goes on, the fourth was retracted.

    Under overlap scheduling the round is told when the engine has processed its results.
    """
    policy = Listener()
    observer = RoundObserver(policy, Clock(), rounds_late=1)
    reqs = [FakeRequest(rid, output_ids=[7]) for rid in "abcd"]
    observer.round_begins(a_round(reqs, Arm(3, drafts=True), lengths=[3] * 4, proposals=[Proposal((8, 9, 1), 4)] * 4))
    observer.round_ended([2, 2, 2, 2], [[8, 9, 1]] * 4)
    observer.forward_begins()
    reqs[0].ended, reqs[0].finished_len = True, 1
    reqs[1].ended, reqs[1].finished_len = True, 3
    reqs[1].output_ids += [8, 9, 1]
    reqs[2].output_ids += [8, 9, 1]
    reqs[3].is_retracted = True
    observer.forward_begins()
    assert policy.made == (0, 2, 3, 0)
    assert policy.matching == (0, 2, 3, 0)
    assert policy.heard == [(Arm(3, drafts=True), (2, 2, 2, 2), 0.0)], "the time of the round counts all the same"


def test_an_aborted_answer_took_what_the_engine_gave_it() -> None:
    policy = Listener()
    observer, req = RoundObserver(policy, Clock()), FakeRequest("r", output_ids=[7], ended=True)
    observer.round_begins(a_round([req], OFF, lengths=[3]))
    observer.round_ended([0])
    observer.forward_begins()
    assert policy.made == (0,)
