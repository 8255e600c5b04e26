"""A replica acts only while it leads, and leadership begins, ends and is released in that order."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.lead.leadership import MAX_SILENT_SECONDS, LeaderElector, boot_seconds
from tests.unit.operator.worlds import CONFIG

SHORT = replace(CONFIG, lease_seconds=2)
"""Below the limit of the settings, so that the tests are fast."""


@dataclass
class FakeLeases:
    """An API server with one Lease. It can be away, hang, and lose the answer to a write."""

    lease: Object | None = None
    away: bool = False
    hangs: threading.Event | None = None
    loses_answers: int = 0
    writes: int = 0

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._arrive()
        if self.lease is None:
            raise NotFound("no Lease", 404)
        return copy.deepcopy(self.lease)

    def create(self, obj: Object) -> Object:
        self._arrive()
        if self.lease is not None:
            raise Conflict("exists", 409)
        return self._store(obj)

    def replace(self, obj: Object) -> Object:
        self._arrive()
        if self.lease is None:
            raise NotFound("no Lease", 404)
        if obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed", 409)
        return self._store(obj)

    @property
    def holder(self) -> str:
        return self.lease["spec"]["holderIdentity"] if self.lease is not None else ""

    def _arrive(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(10)
        if self.away:
            raise KubernetesError("away")

    def _store(self, obj: Object) -> Object:
        self.writes += 1
        metadata = {**obj["metadata"], "uid": "lease", "resourceVersion": str(self.writes)}
        self.lease = {**copy.deepcopy(obj), "metadata": metadata}
        if self.loses_answers:
            self.loses_answers -= 1
            raise KubernetesError("connection reset")
        return copy.deepcopy(self.lease)


@dataclass
class Replica:
    """A replica that records when its leadership begins and ends."""

    elector: LeaderElector
    history: list[str] = field(default_factory=list)
    acts_at_end: bool = False

    def started(self) -> None:
        self.elector.ensure_leading()
        self.history.append("started")

    async def lost(self) -> None:
        self.acts_at_end = self.elector.leading
        self.history.append("lost")


@asynccontextmanager
async def running(api: FakeLeases, **options: Any) -> AsyncIterator[Replica]:
    replica = Replica(LeaderElector(api, SHORT, **options))
    task = asyncio.create_task(replica.elector.run(replica.started, replica.lost))
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(holds: Any, timeout_seconds: float = 5) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not holds():  # noqa: ASYNC110 - what is awaited happens in threads and in other tasks
            await asyncio.sleep(0.01)


async def test_the_first_replica_leads_and_a_second_waits_until_it_is_released() -> None:
    api = FakeLeases()
    async with running(api) as first:
        await eventually(lambda: first.elector.leading)
        async with running(api) as second:
            await asyncio.sleep(2.5)
            assert (first.elector.leading, second.elector.leading) == (True, False)
            with pytest.raises(NotLeading, match="does not hold the Lease aurora-system/aurora-operator"):
                second.elector.ensure_leading()
    assert first.history == ["started", "lost"]
    assert first.acts_at_end, "a clean stop ends the loops while the Lease still protects them"
    assert second.history == []
    assert api.holder == ""


async def test_a_standby_leads_at_once_after_a_clean_stop() -> None:
    api = FakeLeases()
    async with running(api) as second:
        async with running(api) as first:
            await eventually(lambda: first.elector.leading or second.elector.leading)
            leader, standby = (first, second) if first.elector.leading else (second, first)
        if leader is first:
            await eventually(lambda: standby.elector.leading, timeout_seconds=SHORT.lease_seconds)


async def test_a_leader_that_cannot_renew_stops_before_its_lease_expires_and_leads_again_later() -> None:
    api = FakeLeases()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        cut_at = boot_seconds()
        api.away = True
        await eventually(lambda: replica.history == ["started", "lost"])
        assert boot_seconds() - cut_at < SHORT.lease_seconds
        assert not replica.acts_at_end
        api.away = False
        await eventually(lambda: replica.history == ["started", "lost", "started"])


async def test_a_call_that_hangs_does_not_keep_a_replica_leading() -> None:
    api = FakeLeases()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        api.hangs = threading.Event()
        await eventually(lambda: "lost" in replica.history, timeout_seconds=3)
        api.hangs.set()
        await eventually(lambda: replica.elector.leading)


async def test_a_frozen_leader_does_not_act_when_it_goes_on() -> None:
    """The clock jumps while the process does not run, as in SIGSTOP. No task of the process had a chance to notice."""
    api = FakeLeases()
    jump = [0.0]
    async with running(api, clock=lambda: boot_seconds() + jump[0]) as replica:
        await eventually(lambda: replica.elector.leading)
        jump[0] = 1.41
        with pytest.raises(NotLeading):
            replica.elector.ensure_leading()
        await eventually(lambda: replica.history[:2] == ["started", "lost"])


async def test_a_renewal_whose_answer_is_lost_does_not_end_the_leadership() -> None:
    api = FakeLeases()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        api.loses_answers = 1
        await asyncio.sleep(2.5)
        assert replica.elector.leading
        assert replica.history == ["started"]


async def test_a_clean_stop_releases_the_lease_only_after_the_write_under_way_has_ended() -> None:
    """A cancelled task leaves its thread behind, and the next leader's writes must come after that thread's."""
    api = FakeLeases()
    answered = threading.Event()
    held_at_end: list[bool] = []

    def write(elector: LeaderElector) -> None:
        with elector.acting():
            answered.wait(10)
            held_at_end.append(api.holder != "")

    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        thread = threading.Thread(target=write, args=(replica.elector,))
        thread.start()
        asyncio.get_running_loop().call_later(0.3, answered.set)
    thread.join()
    assert held_at_end == [True]
    assert api.holder == "", "released afterwards"
    with pytest.raises(NotLeading), replica.elector.acting():
        raise AssertionError("a write began after the stop")


async def test_a_write_that_hangs_lets_the_lease_expire_instead_of_releasing_it() -> None:
    api = FakeLeases()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        hanging = replica.elector.acting()
        hanging.__enter__()
        stopped_at = boot_seconds()
    assert boot_seconds() - stopped_at < SHORT.lease_seconds
    assert api.holder != ""
    hanging.__exit__(None, None, None)


@pytest.mark.parametrize("lease", [None, "another replica"])
async def test_a_leader_stops_when_its_lease_was_deleted_or_given_to_another_replica(lease: str | None) -> None:
    api = FakeLeases()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        stored = api.lease
        assert stored is not None
        spec = {**stored["spec"], "holderIdentity": lease, "leaseDurationSeconds": 60}
        api.lease = (
            None if lease is None else {"metadata": {**stored["metadata"], "resourceVersion": "x"}, "spec": spec}
        )
        await eventually(lambda: "lost" in replica.history, timeout_seconds=2)


async def test_an_election_that_waits_for_a_loop_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    api, offset = FakeLeases(), 0.0
    async with running(api, clock=lambda: boot_seconds() + offset) as replica:
        await eventually(lambda: replica.history == ["started"])
        assert list(replica.elector.silent()) == []
        ended = asyncio.Event()
        monkeypatch.setattr(replica, "lost", ended.wait)
        offset += MAX_SILENT_SECONDS + 60
        assert len(list(replica.elector.silent())) == 1
        ended.set()
        await eventually(lambda: not list(replica.elector.silent()))


async def test_the_election_tells_for_how_long_the_api_server_has_answered() -> None:
    api, offset = FakeLeases(), 0.0
    async with running(api, clock=lambda: boot_seconds() + offset) as replica:
        await eventually(lambda: replica.elector.answered_seconds > 0)
        api.away = True
        await eventually(lambda: replica.elector.answered_seconds == 0)
        await asyncio.sleep(0.5)
        assert replica.elector.answered_seconds == 0
        api.away = False
        await eventually(lambda: replica.elector.answered_seconds > 0)
        offset += 3600
        await eventually(lambda: replica.elector.answered_seconds == 0)
        await eventually(lambda: replica.elector.answered_seconds > 0)
        assert replica.elector.answered_seconds < 60, "nobody was asked while the process was frozen"


async def test_a_standby_does_not_lead_at_once_when_somebody_deletes_the_lease() -> None:
    api = FakeLeases()
    async with running(api) as first:
        await eventually(lambda: first.elector.leading)
        async with running(api) as second:
            await asyncio.sleep(0.5)
            api.lease = None
            await eventually(lambda: api.lease is not None)
            assert api.holder.endswith(first.elector._election.identity)
            assert second.history == []


async def test_a_call_that_is_abandoned_is_counted() -> None:
    def abandoned() -> float:
        return REGISTRY.get_sample_value("aurora_api_calls_abandoned_total") or 0.0

    api, before = FakeLeases(), abandoned()
    async with running(api) as replica:
        await eventually(lambda: replica.elector.leading)
        assert abandoned() == before
        api.hangs = threading.Event()
        await eventually(lambda: abandoned() > before)
        api.hangs.set()


async def test_a_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    api = FakeLeases(away=True)
    async with running(api):
        await asyncio.sleep(0.5)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "cannot read or write the Lease: away"
    ]
