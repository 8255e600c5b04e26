"""At most one replica leads, whatever is delayed, lost, frozen or released."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aurora_operator.kubernetes_api import Object
from aurora_operator.lead.election import Election, LeaseTiming
from tests.example_count import example_count

TIMING = LeaseTiming(10)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPLICAS = st.integers(0, 2)


def stored(spec: Object, version: int = 1, uid: str = "lease") -> Object:
    return {"metadata": {"name": "l", "namespace": "n", "uid": uid, "resourceVersion": str(version)}, "spec": spec}


def replica(name: str = "me") -> Election:
    return Election(name, TIMING)


def held_by(holder: str, renewed: str = "t0") -> Object:
    return stored({"holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": renewed})


def test_a_lease_that_does_not_exist_or_has_no_holder_is_taken_at_once() -> None:
    assert replica().after_look(None, 100).may_take(100)
    assert replica().after_look(held_by(""), 100).may_take(100)


def test_a_lease_of_another_replica_is_taken_when_it_was_seen_unchanged_for_its_duration() -> None:
    seen = replica().after_look(held_by("other"), 100)
    assert not seen.may_take(109.9)
    assert seen.may_take(110)
    renewed = seen.after_look(held_by("other", "t1"), 109)
    assert not renewed.may_take(118.9), "a renewal starts the time anew"
    untouched = seen.after_look(held_by("other"), 109)
    assert untouched.may_take(110)


def test_a_lease_that_was_deleted_and_created_again_with_the_same_content_is_a_new_one() -> None:
    again = stored(held_by("other")["spec"], uid="another")
    assert not replica().after_look(held_by("other"), 100).after_look(again, 109).may_take(110)


def test_a_standby_waits_for_the_time_of_a_lease_after_somebody_deleted_it() -> None:
    """The leader notices the deletion at its next renewal, and acts until then."""
    for holder in ("other", "", "me"):
        gone = replica().after_look(held_by(holder), 100).after_look(None, 105)
        assert not gone.may_take(114.9)
        assert gone.pause_seconds(114.5) == 0.5
        assert gone.after_look(None, 110).may_take(115), "another look does not begin the wait anew"


def test_a_leader_makes_its_deleted_lease_anew_at_once() -> None:
    leader = replica().after_write(held_by("me"), sent_seconds=100, now_seconds=100)
    assert leader.after_look(None, 102).may_take(102)
    assert not leader.after_look(None, 107).may_take(107), "its time is over, so another one may lead"


def test_a_leader_stops_before_a_standby_may_take_the_lease() -> None:
    leader = replica().after_write(held_by("me"), sent_seconds=100, now_seconds=103)
    assert leader.leads(106.9)
    assert not leader.leads(107), "the time counts from before the call"
    assert TIMING.renew_deadline_seconds < TIMING.lease_seconds


def test_a_leader_stops_at_once_when_the_lease_is_gone_or_names_another_replica() -> None:
    leader = replica().after_write(held_by("me"), 100, 100)
    assert leader.after_look(held_by("me", "t9"), 101).leads(101)
    assert not leader.after_look(held_by("other"), 101).leads(101)
    assert not leader.after_look(None, 101).leads(101)


def test_a_standby_looks_again_exactly_when_the_lease_expires() -> None:
    seen = replica().after_look(held_by("other"), 100)
    assert seen.pause_seconds(100) == TIMING.retry_seconds
    assert seen.pause_seconds(109.5) == 0.5
    assert 0 < seen.pause_seconds(110) < TIMING.retry_seconds, "an attempt that failed is repeated after a pause"


def test_a_renewal_keeps_the_time_of_acquisition_and_a_change_counts() -> None:
    first = replica("a").taken_lease("l", "n", NOW)
    assert first["spec"]["leaseTransitions"] == 0
    leader = replica("a").after_write(stored(first["spec"]), 0, 0)
    later = datetime(2026, 1, 2, tzinfo=UTC)
    renewal = leader.taken_lease("l", "n", later)
    assert renewal["spec"]["acquireTime"] == first["spec"]["acquireTime"] != renewal["spec"]["renewTime"]
    assert renewal["metadata"]["resourceVersion"] == "1"
    taken = replica("b").after_look(stored(renewal["spec"], 2), 50).taken_lease("l", "n", later)
    assert (taken["spec"]["holderIdentity"], taken["spec"]["leaseTransitions"]) == ("b", 1)
    assert taken["spec"]["acquireTime"] == renewal["spec"]["renewTime"]


def test_only_the_holder_releases_the_lease() -> None:
    assert replica().released_lease(NOW) is None
    assert replica().after_look(held_by("other"), 0).released_lease(NOW) is None
    free = replica().after_look(held_by("me"), 0).released_lease(NOW)
    assert free is not None
    assert free["spec"]["holderIdentity"] == ""


def test_a_leader_that_hangs_leads_until_its_time_is_over_and_takes_no_lease_until_it_turns_again() -> None:
    leader = replica().after_write(held_by("me"), 100, 100)
    assert leader.after_question(TIMING.max_hang_seconds).may_take(101), "a busy loop costs nothing"
    hanging = leader.after_question(TIMING.max_hang_seconds + 0.1)
    assert (hanging.may_take(101), hanging.leads(106.9), hanging.leads(107)) == (False, True, False)
    assert not hanging.may_take(10_000)
    assert hanging.pause_seconds(10_000) == TIMING.retry_seconds, "an expired Lease is no reason to hurry"
    assert hanging.after_question(0).may_take(10_000)


@dataclass
class Process:
    """One replica with the calls that are under way. Its clock has an offset of its own."""

    election: Election
    offset_seconds: float
    writes: list[tuple[Object, float, int]] = field(default_factory=list)
    """Requests that the API server has not received yet, each with its time of sending and its run."""
    answers: list[tuple[str, Object | None, float]] = field(default_factory=list)
    """Answers that the process has not received yet, each with the time at which its request was sent."""
    run: int = 0
    """Grows with each clean stop. A process that stopped waits for no answer."""


class Replicas(RuleBasedStateMachine):
    """Three replicas and a simulated API server. Requests and answers are delayed, reordered and lost at will."""

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 1000.0
        self.lease: Object | None = None
        self.version = 0
        self.deleted = False
        self.processes = [Process(replica(name), offset) for name, offset in (("a", 0.0), ("b", 500.0), ("c", -300.0))]

    def clock(self, process: Process) -> float:
        return self.now_seconds + process.offset_seconds

    @property
    def wall_clock(self) -> datetime:
        """A renewal differs from the last one only by this time."""
        return NOW + timedelta(seconds=self.now_seconds)

    @rule(seconds=st.sampled_from([0.5, 2.9, 6.9, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_seconds += seconds

    @rule(index=REPLICAS, late=st.booleans())
    def look(self, index: int, late: bool) -> None:
        process = self.processes[index]
        process.answers.append(("look", copy.deepcopy(self.lease), self.clock(process)))
        if not late:
            self.receive(process)

    @rule(index=REPLICAS, late=st.sampled_from(["no", "request", "answer", "lost answer"]))
    def write(self, index: int, late: str) -> None:
        process = self.processes[index]
        now_seconds = self.clock(process)
        if not process.election.may_take(now_seconds):
            return
        process.writes.append((process.election.taken_lease("l", "n", self.wall_clock), now_seconds, process.run))
        if late == "request":
            return
        self.arrive(process, lost=late == "lost answer")
        if late == "no":
            self.receive(process)

    @rule(index=REPLICAS, silent_seconds=st.sampled_from([0.0, TIMING.max_hang_seconds, 31.0]))
    def loop_was_asked(self, index: int, silent_seconds: float) -> None:
        process = self.processes[index]
        process.election = process.election.after_question(silent_seconds)

    @rule(index=REPLICAS)
    def lease_is_released(self, index: int) -> None:
        process = self.processes[index]
        process.answers.clear()
        process.run += 1
        process.election = process.election.stopped()
        lease = process.election.released_lease(self.wall_clock)
        if lease is not None:
            self.store(lease)

    @precondition(lambda self: self.lease is not None and not self.deleted)
    @rule()
    def somebody_deletes_the_lease(self) -> None:
        """Once, after every replica has seen the Lease. A replica that knows no Lease may make one at any time."""
        for process in self.processes:
            process.writes.clear()
            if process.election.sighting is None:
                process.election = process.election.after_look(copy.deepcopy(self.lease), self.clock(process))
        self.lease, self.deleted = None, True

    @precondition(lambda self: any(process.writes for process in self.processes))
    @rule(index=REPLICAS)
    def late_request_arrives(self, index: int) -> None:
        self.arrive(self.processes[index], lost=False)

    @precondition(lambda self: any(process.answers for process in self.processes))
    @rule(index=REPLICAS)
    def late_answer_arrives(self, index: int) -> None:
        self.receive(self.processes[index])

    def arrive(self, process: Process, *, lost: bool) -> None:
        """The API server receives the last request that is under way."""
        if process.writes:
            body, sent, run = process.writes.pop()
            answer = self.store(body)
            if answer is not None and run == process.run and not lost:
                process.answers.append(("write", answer, sent))

    def receive(self, process: Process) -> None:
        """The process receives the last answer that is under way."""
        if process.answers:
            kind, lease, sent = process.answers.pop()
            now_seconds = self.clock(process)
            if kind == "look":
                process.election = process.election.after_look(lease, now_seconds)
            else:
                assert lease is not None
                process.election = process.election.after_write(lease, sent, now_seconds)

    def store(self, body: Object) -> Object | None:
        """What the API server does: it stores a write whose resourceVersion is current, or refuses it."""
        current = None if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if body["metadata"].get("resourceVersion") != current:
            return None
        self.version += 1
        self.lease = stored(copy.deepcopy(body["spec"]), self.version)
        return copy.deepcopy(self.lease)

    @invariant()
    def at_most_one_leads(self) -> None:
        leaders = [p.election.identity for p in self.processes if p.election.leads(self.clock(p))]
        assert len(leaders) <= 1, leaders


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=example_count(500), stateful_step_count=50, deadline=None)
