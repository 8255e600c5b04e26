"""Nobody takes a speculator from an installation that answers, and nobody yields for ever."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from aurora_api.v1alpha1.status import OperatorChallenge, OperatorIdentity, SpeculatorStatus
from aurora_operator.act.contest import (
    CHALLENGE_SECONDS,
    MAX_PAUSE_SECONDS,
    MIN_PAUSE_SECONDS,
    PAUSE_JITTER,
    Claim,
    Contest,
    decide,
)
from aurora_operator.lead.election import LeaseTiming
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.watch.api_stream import READ_SECONDS
from aurora_operator.watch.informer import MAX_BACKOFF_SECONDS
from tests.example_count import example_count

OURS = OperatorIdentity(installation="aurora-system/aurora-operator", version="1")
NEWER = OURS.model_copy(update={"version": "2"})
THEIRS = OperatorIdentity(installation="laptop/aurora-operator", version="9")
THIRD = OperatorIdentity(installation="third/aurora-operator", version="1")
UID = "uid"


def challenge(nonce: str, by: OperatorIdentity = OURS) -> OperatorChallenge:
    return OperatorChallenge(installation=by.installation, version=by.version, nonce=nonce)


def asked(nonce: str, holder: OperatorIdentity = THEIRS, by: OperatorIdentity = OURS) -> SpeculatorStatus:
    return SpeculatorStatus(operator=holder, operator_challenge=challenge(nonce, by))


QUIET = SpeculatorStatus(operator=THEIRS)


def after(status: SpeculatorStatus, contest: Contest | None, now_seconds: float) -> tuple[Claim, Contest]:
    claim, remembered = decide(UID, OURS, status, contest, now_seconds)
    assert remembered is not None
    return claim, remembered


def test_an_installation_acts_where_it_is_named_and_claims_what_names_nobody() -> None:
    for named, expected in ((OURS, Claim.HOLD), (NEWER, Claim.TAKE), (None, Claim.TAKE)):
        status = SpeculatorStatus(operator=named)
        assert decide(UID, OURS, status, Contest(UID, THEIRS.installation), 0) == (expected, None)


def test_fields_that_another_version_added_to_the_name_make_no_difference() -> None:
    extended = OperatorIdentity.model_validate({**OURS.model_dump(), "mood": "good"})
    assert decide(UID, OURS, SpeculatorStatus(operator=extended), None, 0)[0] is Claim.HOLD


def test_a_challenge_that_stands_unanswered_for_its_time_lets_the_newcomer_act() -> None:
    claim, contest = after(QUIET, None, 1000)
    assert claim is Claim.CHALLENGE
    contest = contest.waiting("n", 1000)
    for seconds in (0.0, 1.0, CHALLENGE_SECONDS - 0.1):
        claim, contest = after(asked("n"), contest, 1000 + seconds)
        assert claim is Claim.WAIT
    assert contest.seconds_left(1010) == CHALLENGE_SECONDS - 10
    assert after(asked("n"), contest, 1000 + CHALLENGE_SECONDS)[0] is Claim.TAKE


def test_an_answer_makes_the_newcomer_yield_with_growing_pauses_and_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    now_seconds, contest, pauses = 1000.0, Contest(UID, THEIRS.installation), list[float]()
    for turn in range(6):
        claim, contest = after(QUIET, contest, now_seconds)
        assert claim is Claim.CHALLENGE
        contest = contest.waiting(str(turn), now_seconds)
        claim, contest = after(QUIET, contest, now_seconds + 1)
        assert claim is Claim.YIELD
        pauses.append(contest.seconds_left(now_seconds + 1))
        assert after(QUIET, contest, now_seconds + pauses[-1])[0] is Claim.YIELD, "an early wake asks nobody"
        now_seconds += 1 + pauses[-1]
    assert pauses == [MIN_PAUSE_SECONDS, 120, 240, 480, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS]


def test_the_pauses_of_many_speculators_differ() -> None:
    pauses = {Contest(UID, "x").answered(0).quiet_until_seconds for _ in range(20)}
    assert len(pauses) > 10
    assert all((1 - PAUSE_JITTER) * MIN_PAUSE_SECONDS <= pause <= MIN_PAUSE_SECONDS for pause in pauses)


def test_a_second_newcomer_waits_for_the_answer_to_the_first_ones_challenge() -> None:
    others = asked("n", by=THIRD)
    claim, contest = after(others, None, 0)
    assert claim is Claim.WAIT, "it writes nothing"
    assert after(others, contest, CHALLENGE_SECONDS)[0] is Claim.TAKE, "the one that asked may be gone as well"
    assert after(QUIET, contest, 10)[0] is Claim.YIELD, "the holder answered"


def test_another_challenge_in_its_place_shows_that_the_first_one_was_answered() -> None:
    _, contest = after(asked("n"), None, 0)
    assert after(asked("m", by=THIRD), contest, CHALLENGE_SECONDS)[0] is Claim.YIELD


def test_a_contest_begins_anew_with_another_holder_and_with_a_speculator_that_was_created_again() -> None:
    _, contest = after(asked("n"), None, 0)
    claim, begun = after(asked("n", holder=THIRD), contest, CHALLENGE_SECONDS)
    assert (claim, begun.since_seconds, begun.holder) == (Claim.WAIT, CHALLENGE_SECONDS, THIRD.installation)
    claim, begun = after(asked("n"), replace(contest, uid="former"), CHALLENGE_SECONDS)
    assert (claim, begun.since_seconds) == (Claim.WAIT, CHALLENGE_SECONDS)
    newer = THEIRS.model_copy(update={"version": "10"})
    assert after(asked("n", holder=newer), contest, CHALLENGE_SECONDS)[0] is Claim.TAKE, "the same installation"


def test_a_live_installation_has_time_to_answer() -> None:
    failover_seconds = LeaseTiming(OperatorConfig("runtime", "agent").lease_seconds).hang_failover_seconds + 2
    whole_after_a_restart_seconds = 60
    assert failover_seconds + whole_after_a_restart_seconds < CHALLENGE_SECONDS
    assert READ_SECONDS + MAX_BACKOFF_SECONDS + 10 < CHALLENGE_SECONDS, "a broken connection of the informer"


@dataclass
class Installation:
    """One installation, with what it last saw of the status."""

    identity: OperatorIdentity
    offset_seconds: float
    alive: bool = True
    alive_since_seconds: float = 0.0
    contest: Contest | None = None
    seen: tuple[int, SpeculatorStatus] = field(default=(0, SpeculatorStatus()))


INDEXES = st.integers(0, 2)


class Installations(RuleBasedStateMachine):
    """Three installations that end and start at any time, and act on outdated views of one status.

    A live installation answers a challenge within 120 s. Everything else is delayed at will.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 1000.0
        self.revision, self.status = 0, SpeculatorStatus()
        self.asked_at_seconds = 0.0
        self.nonces = 0
        self.installations = [
            Installation(identity, offset) for identity, offset in ((OURS, 0.0), (THEIRS, 900.0), (THIRD, -400.0))
        ]

    def holder(self) -> Installation | None:
        named = self.status.operator
        return next((one for one in self.installations if one.identity == named), None)

    def write(self, **changes: object) -> None:
        self.revision, self.status = self.revision + 1, self.status.model_copy(update=changes)

    @rule(index=INDEXES)
    def look(self, index: int) -> None:
        self.installations[index].seen = self.revision, self.status

    @rule(index=INDEXES)
    def act(self, index: int) -> None:
        one = self.installations[index]
        if not one.alive:
            return
        clock_seconds = self.now_seconds + one.offset_seconds
        revision, seen = one.seen
        claim, one.contest = decide(UID, one.identity, seen, one.contest, clock_seconds)
        if claim in (Claim.TAKE, Claim.CHALLENGE) and revision != self.revision:
            self.look(index)  # a conflict
        elif claim is Claim.TAKE:
            holder = self.holder()
            if holder is not None and holder is not one and holder.alive:
                assert holder.alive_since_seconds > self.asked_at_seconds, "a live installation lost its speculator"
            self.write(operator=one.identity, operator_challenge=None)
            self.look(index)
        elif claim is Claim.CHALLENGE:
            assert one.contest is not None
            self.nonces += 1
            self.asked_at_seconds = self.now_seconds
            self.write(operator_challenge=challenge(str(self.nonces), one.identity))
            one.contest = one.contest.waiting(str(self.nonces), clock_seconds)
            self.look(index)

    @rule(seconds=st.sampled_from([1.0, 29.0, 119.0, 151.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        end_seconds = self.now_seconds + seconds
        holder = self.holder()
        if self.status.operator_challenge is not None and holder is not None and holder.alive:
            due_seconds = max(self.asked_at_seconds, holder.alive_since_seconds) + 120
            if end_seconds >= due_seconds:
                self.write(operator_challenge=None)
        self.now_seconds = end_seconds

    @rule(index=INDEXES)
    def ends_or_starts(self, index: int) -> None:
        one = self.installations[index]
        one.alive, one.alive_since_seconds, one.contest = not one.alive, self.now_seconds, None
        self.look(index)


TestInstallations = Installations.TestCase
TestInstallations.settings = settings(max_examples=example_count(300), stateful_step_count=50, deadline=None)
