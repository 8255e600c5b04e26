"""The policy hears of every round once, with a time only where the time is the round's own."""

from __future__ import annotations

from typing import Any

from aurora_runtime.engine.arms import OFF, Arm
from aurora_runtime.serving.speculation.lookup import Proposal
from aurora_runtime.serving.speculation.rounds import Outcome, Round, RoundObserver
from tests.unit.serving.speculation.fake_requests import FakeRequest, a_round


class Listener:
    """Records what an observer tells, at the time ``now``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard: list[Any] = []
        self.outcome = Outcome(a_round([], OFF).decision, (), (), None)
        self.observer = RoundObserver(self.observe, self.heard.append, clock=lambda: self.now)

    def observe(self, _: Round, outcome: Outcome) -> None:
        self.outcome = outcome
        self.heard.append((outcome.decision.arm, tuple(outcome.accepted), outcome.milliseconds))


def test_a_rounds_time_ends_when_the_next_forward_pass_begins() -> None:
    policy, req = Listener(), FakeRequest("r")
    observer = policy.observer
    began = observer.forward_begins()
    observer.round_begins(a_round([req], Arm(2, drafts=False), began=began))
    assert observer.round_ended([[1, 2, 3]]) is not None
    assert policy.heard == []
    policy.now = 0.25
    observer.forward_begins()
    assert policy.heard == [(Arm(2, drafts=False), (2,), 250.0)]
    observer.forward_begins()
    assert len(policy.heard) == 1


def test_the_time_is_unknown_when_the_engine_may_have_waited() -> None:
    policy, req = Listener(), FakeRequest("r", ended=True)
    observer = policy.observer
    observer.round_begins(a_round([req], OFF))
    observer.round_ended([[1]])
    policy.now = 9.0
    observer.request_ended("r")
    observer.forward_begins()
    assert policy.heard == [(OFF, (0,), None), "r"], "the end of a request follows its last round"


def test_a_request_that_takes_part_in_no_round_ends_at_once() -> None:
    """Requests for scores end with their prefill, and for hours no decode round may come."""
    policy = Listener()
    policy.observer.round_begins(a_round([FakeRequest("r")], OFF, began=policy.observer.forward_begins()))
    policy.observer.request_ended("scored")
    policy.observer.request_ended("r")
    assert policy.heard == ["scored"]


def test_a_round_whose_results_were_lost_is_not_observed() -> None:
    policy, reqs = Listener(), [FakeRequest("a"), FakeRequest("b")]
    policy.observer.round_begins(a_round(reqs, OFF))
    assert policy.observer.round_ended([[1]]) is None
    policy.observer.forward_begins()
    assert policy.observer.round_ended([[1], [1]]) is None
    assert policy.heard == []


def test_the_policy_hears_how_much_of_a_lookup_was_right_that_the_round_did_not_use() -> None:
    policy = Listener()
    observer = policy.observer
    reqs = [FakeRequest("a", output_ids=[7]), FakeRequest("b", output_ids=[7]), FakeRequest("c", output_ids=[7])]
    proposals = [Proposal((8, 9, 1), 4), Proposal((5, 6), 4), Proposal()]
    for arm, committed, right in (
        (Arm(2, drafts=True), [[8, 9], [6], [8]], (2, 0, 0)),
        (OFF, [[8], [5], [8]], (1, 1, 0)),
    ):
        observer.round_begins(a_round(reqs, arm, proposals=proposals, lengths=[3] * 3))
        observer.round_ended(committed)
        observer.forward_begins()
        assert policy.outcome.unplayed_lookup == right


def test_the_policy_hears_how_many_tokens_of_a_round_an_answer_took() -> None:
    """The first answer stopped before the round, the second in its middle, the third goes on, the fourth was retracted.
    The fifth was aborted."""
    policy = Listener()
    reqs = [FakeRequest(rid, output_ids=[7]) for rid in "abcde"]
    current = a_round(reqs, Arm(3, drafts=True), lengths=[3] * 5, proposals=[Proposal((8, 9, 1), 4)] * 5)
    policy.observer.round_begins(current)
    policy.observer.round_ended([[8, 9, 1]] * 5)
    reqs[0].ended, reqs[0].finished_len = True, 1
    reqs[1].ended, reqs[1].finished_len = True, 3
    reqs[1].output_ids += [8, 9, 1]
    reqs[2].output_ids += [8, 9, 1]
    reqs[3].is_retracted = True
    reqs[4].ended = True
    policy.observer.forward_begins()
    assert policy.outcome.made == (0, 2, 3, 0, 0)
    assert policy.outcome.unplayed_lookup == (0, 2, 3, 0, 0)
    assert policy.heard == [(Arm(3, drafts=True), (2,) * 5, 0.0)], "the time of the round counts all the same"
