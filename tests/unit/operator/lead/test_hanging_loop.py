"""A leader whose event loop hangs loses its Lease to a standby, and does not act when its loop goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_operator.errors import NotLeading
from aurora_operator.lead.election import Election, LeaseTiming
from aurora_operator.lead.election_thread import run_election
from aurora_operator.lead.heartbeat import Heartbeat
from aurora_operator.lead.leadership import LeaderElector
from tests.example_count import example_count
from tests.unit.operator.lead.test_election import NOW, stored
from tests.unit.operator.lead.test_leadership import SHORT, FakeLeases, eventually

TIMING = LeaseTiming(10)
MAX_HANG_SECONDS = 1.0
FAILOVER_SECONDS = LeaseTiming(SHORT.lease_seconds, MAX_HANG_SECONDS).hang_failover_seconds


@dataclass
class Simulation:
    """A leader and a standby with a Lease, without delays. The leader's event loop hangs for a while."""

    hangs_from: float
    hangs_until: float
    now: float = 0.0
    unanswered: list[Callable[[], None]] = field(default_factory=list)
    leader: Election = field(default_factory=lambda: Election("leader", TIMING))
    standby: Election = field(default_factory=lambda: Election("standby", TIMING))

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(self.call_soon, lambda: self.now)
        self.lease = stored({})
        self.version = 1

    def call_soon(self, answer: Callable[[], None]) -> None:
        if self.hangs_from <= self.now < self.hangs_until:
            self.unanswered.append(answer)
        else:
            answer()

    def attempt(self, election: Election) -> Election:
        """One attempt, as :class:`LeaderElector` makes it."""
        if not election.leads(self.now):
            election = election.after_look(self.lease, self.now)
        if not election.may_take(self.now):
            return election
        self.version += 1
        self.lease = stored({**election.taken_lease("l", "n", NOW)["spec"], "renewTime": self.version}, self.version)
        return election.after_write(self.lease, self.now, self.now)

    def run(self, until: float) -> tuple[float | None, float | None]:
        """When the leader ceased to lead, and when the standby led first."""
        lost = taken = None
        next_leader = next_standby = 0.0
        while self.now <= until:
            if self.now >= self.hangs_until:
                while self.unanswered:
                    self.unanswered.pop()()
            if self.now >= next_leader:
                self.leader = self.attempt(self.leader.after_question(self.heartbeat.silent_seconds()))
                next_leader = self.now + self.leader.pause_seconds(self.now)
            if self.now >= next_standby:
                self.standby = self.attempt(self.standby)
                next_standby = self.now + self.standby.pause_seconds(self.now)
            leads = self.leader.leads(self.now), self.standby.leads(self.now)
            assert leads != (True, True)
            lost = self.now if lost is None and not leads[0] else lost
            taken = self.now if taken is None and leads[1] else taken
            self.now = min(next_leader, next_standby, self.now + 0.25)
        return lost, taken


@settings(max_examples=example_count(100), deadline=None)
@given(hangs_from=st.floats(0, 20), more_seconds=st.floats(0.1, 100))
def test_a_standby_leads_within_the_bound_after_an_event_loop_hung(hangs_from: float, more_seconds: float) -> None:
    """``more_seconds``: how much longer than the bound of the failover."""
    bound_seconds = TIMING.hang_failover_seconds
    hanging = Simulation(hangs_from, hangs_from + bound_seconds + more_seconds)
    lost, taken = hanging.run(hanging.hangs_until)
    assert lost is not None
    assert taken is not None
    assert hangs_from + TIMING.max_hang_seconds < lost < taken <= hangs_from + bound_seconds + 0.5


@settings(max_examples=example_count(100), deadline=None)
@given(hangs_from=st.floats(0, 20), share=st.floats(0, 1))
def test_a_busy_event_loop_keeps_the_lease(hangs_from: float, share: float) -> None:
    busy = Simulation(hangs_from, hangs_from + share * TIMING.max_hang_seconds)
    assert busy.run(busy.hangs_until + 60) == (None, None)


def test_a_pause_between_two_questions_is_no_silence() -> None:
    now = 0.0
    heartbeat = Heartbeat(lambda answer: answer(), lambda: now)
    assert heartbeat.silent_seconds() == 0
    now = 1000.0
    assert heartbeat.silent_seconds() == 0


class Replica:
    """A replica that records what its loops do. Its election runs in a thread, as in the operator."""

    def __init__(self, api: FakeLeases) -> None:
        self.elector = LeaderElector(api, SHORT, max_hang_seconds=MAX_HANG_SECONDS)
        self.history: list[str] = []
        self.acts: list[float] = []
        self.refused = 0
        self.leads = threading.Event()

    def started(self) -> None:
        self.leads.set()
        self.history.append("started")

    async def lost(self) -> None:
        self.history.append("lost")

    async def act(self) -> None:
        """A loop that acts again and again while it may."""
        while True:
            try:
                with self.elector.acting():
                    self.acts.append(time.monotonic())
            except NotLeading:
                self.refused += 1
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_election(self.elector, self.started, self.lost))
            tasks.create_task(self.act())


class Elsewhere:
    """A replica on an event loop of its own, in another thread."""

    def __init__(self, api: FakeLeases) -> None:
        self.replica = Replica(api)
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self.replica.run())
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        self._loop.run_until_complete(asyncio.wait({self._task}))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)


@asynccontextmanager
async def running_here(api: FakeLeases) -> AsyncIterator[Replica]:
    """A replica on the event loop of the test, which the test can block."""
    replica = Replica(api)
    task = asyncio.create_task(replica.run())
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_standby_takes_over_from_a_leader_that_hangs_and_the_leader_acts_no_more_when_it_goes_on() -> None:
    api = FakeLeases()
    async with running_here(api) as leader:
        await eventually(lambda: leader.acts)
        standby = Elsewhere(api)
        try:
            acts = len(leader.acts)
            assert standby.replica.leads.wait(FAILOVER_SECONDS + 5), "the wait blocks the leader's event loop"
            with pytest.raises(NotLeading):
                leader.elector.ensure_leading()
            assert leader.history == ["started"], "the callbacks wait for the event loop"
            await eventually(lambda: leader.history == ["started", "lost"])
            await asyncio.sleep(0.1)
            assert len(leader.acts) == acts
            assert leader.refused > 0
            assert standby.replica.elector.leading
        finally:
            standby.stop()
        await eventually(lambda: leader.history == ["started", "lost", "started"])
        await eventually(lambda: len(leader.acts) > acts)


async def test_a_standby_that_hung_reads_the_lease_as_seldom_as_before_and_logs_the_next_hang(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    api, silent_seconds = FakeLeases(), 0.0
    holder = Elsewhere(api)
    assert holder.replica.leads.wait(5)
    elector = LeaderElector(api, SHORT, max_hang_seconds=MAX_HANG_SECONDS)
    elector._silent_seconds = lambda: silent_seconds
    for _ in range(2):
        silent_seconds = 2 * MAX_HANG_SECONDS
        await elector._attempt()
        await elector._attempt()
        silent_seconds = 0.0
        await elector._attempt()
        assert elector._failure == "", "its pauses are those of a standby again"
    assert len(caplog.records) == 2
    holder.stop()


async def test_a_standby_that_hangs_does_not_take_a_free_lease() -> None:
    api = FakeLeases()
    holder = Elsewhere(api)
    assert holder.replica.leads.wait(5)
    async with running_here(api) as standby:
        await asyncio.sleep(0.5)
        time.sleep(2 * MAX_HANG_SECONDS)  # noqa: ASYNC251 - the event loop that hangs
        holder.stop()
        time.sleep(SHORT.lease_seconds)  # noqa: ASYNC251
        assert api.holder == ""
        await eventually(lambda: standby.history == ["started"])
