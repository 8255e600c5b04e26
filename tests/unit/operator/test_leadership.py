"""One replica leads: it stops before another one can take its Lease, and gives the Lease back when it ends.

The API server is a fake, and everything runs in virtual time.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from kubernetes.aio import client
from kubernetes.aio.client import ApiException, V1Lease, V1LeaseSpec, V1ObjectMeta
from kubernetes.aio.leaderelection import leaderelection
from prometheus_client import REGISTRY

from aurora_operator.errors import NotLeading
from aurora_operator.leadership import CALL_SHARE, RENEW_SHARE, STOP_SECONDS, run_while_leading
from tests.unit.operator.virtual_time import now, run

LEASE_SECONDS = 15
RETRY_SECONDS = 2.0
FOR_EVER = 1e6


@dataclass
class Leases:
    """A fake API server with one Lease. ``outage`` is awaited before each call is answered."""

    lease: V1Lease | None = None
    outage: Callable[[], Awaitable[None]] | None = None
    revision: int = 0

    @property
    def holder(self) -> str | None:
        return None if self.lease is None else self.lease.spec.holder_identity

    def store(self, lease: V1Lease) -> V1Lease:
        """Store ``lease`` as the API server would, with times in place of texts."""
        self.revision += 1
        self.lease = copy.deepcopy(lease)
        self.lease.metadata.resource_version = str(self.revision)
        for name in ("acquire_time", "renew_time"):
            if isinstance(text := getattr(self.lease.spec, name), str):
                setattr(self.lease.spec, name, datetime.fromisoformat(text))
        return copy.deepcopy(self.lease)

    def renew_for(self, holder: str) -> None:
        at = datetime.fromtimestamp(1e9 + now())
        spec = V1LeaseSpec(holder_identity=holder, lease_duration_seconds=LEASE_SECONDS, acquire_time=at, renew_time=at)
        self.store(V1Lease(metadata=V1ObjectMeta(name="lease"), spec=spec))

    async def read_namespaced_lease(self, name: str, namespace: str) -> V1Lease:
        await self._answer()
        if self.lease is None:
            raise self._refusal(404)
        return copy.deepcopy(self.lease)

    async def create_namespaced_lease(self, namespace: str, body: V1Lease) -> V1Lease:
        await self._answer()
        if self.lease is not None:
            raise self._refusal(409)
        return self.store(body)

    async def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease) -> V1Lease:
        await self._answer()
        if self.lease is None or self.lease.metadata.resource_version != body.metadata.resource_version:
            raise self._refusal(409)
        return self.store(body)

    async def _answer(self) -> None:
        if self.outage is not None:
            await self.outage()

    @staticmethod
    def _refusal(status: int) -> ApiException:
        error = ApiException(status=status, reason="refused")
        error.body = json.dumps({"code": status})
        return error


@dataclass
class Replica:
    """A replica and its work, which goes on until ``seconds`` are over, and takes a while to be cancelled."""

    name: str = "a"
    seconds: float = FOR_EVER
    cleanup_seconds: float = 0.0
    led: list[float] = field(default_factory=list)
    """When the work began, and when it was over."""

    async def work(self) -> None:
        self.led.append(now())
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(self.cleanup_seconds)
            raise
        finally:
            self.led.append(now())

    async def run(self) -> None:
        api: Any = None
        await run_while_leading(
            self.work, api, namespace="n", name="lease", identity=self.name, lease_seconds=LEASE_SECONDS
        )


@pytest.fixture(name="leases")
def _leases(monkeypatch: pytest.MonkeyPatch) -> Leases:
    made = Leases()
    monkeypatch.setattr(client, "CoordinationV1Api", lambda api_client: made)
    monkeypatch.setattr(leaderelection, "time", SimpleNamespace(time=lambda: 1e9 + 0.25 + now()))
    return made


async def hangs() -> None:
    await asyncio.sleep(FOR_EVER)


async def fails() -> None:
    raise ApiException(status=500, reason="etcd has no leader")


async def cannot_connect() -> None:
    raise aiohttp.ClientConnectionError


OUTAGES = pytest.mark.parametrize("outage", [hangs, fails, cannot_connect])


def leading() -> float | None:
    return REGISTRY.get_sample_value("aurora_operator_leading")


def test_a_replica_leads_at_once_without_a_lease_and_gives_it_back_when_its_work_ends(leases: Leases) -> None:
    for replica in (Replica("a", seconds=1), Replica("b", seconds=60)):
        run(replica.run())
        assert replica.led == [0, replica.seconds]
        assert (leases.holder, leading()) == (None, 0)
    assert leases.lease is not None, "the next replica takes it without a wait"


def test_a_standby_waits_until_a_lease_was_not_renewed_for_its_duration(leases: Leases) -> None:
    async def live() -> Replica:
        standby = Replica("standby", seconds=1)
        leases.renew_for("leader")
        running = asyncio.create_task(standby.run())
        while now() < 100:
            await asyncio.sleep(5)
            leases.renew_for("leader")
        await running
        return standby

    began, _ = run(live()).led
    assert 100 + LEASE_SECONDS - RETRY_SECONDS <= began <= 100 + LEASE_SECONDS + 2 * RETRY_SECONDS


@OUTAGES
def test_an_api_server_that_is_away_is_a_failed_attempt(leases: Leases, outage: Callable[[], Awaitable[None]]) -> None:
    async def live() -> Replica:
        replica, leases.outage = Replica(seconds=1), outage
        running = asyncio.create_task(replica.run())
        await asyncio.sleep(60)
        leases.outage = None
        await running
        return replica

    assert 60 <= run(live()).led[0] <= 60 + CALL_SHARE * LEASE_SECONDS + RETRY_SECONDS


@OUTAGES
def test_a_leader_that_cannot_renew_stops_before_another_one_can_lead(
    leases: Leases, outage: Callable[[], Awaitable[None]]
) -> None:
    async def live() -> Replica:
        replica = Replica()
        running = asyncio.create_task(replica.run())
        await asyncio.sleep(30)
        assert leading() == 1
        leases.outage = outage
        with pytest.raises(NotLeading):
            await running
        return replica

    ended = run(live()).led[1]
    assert 30 + RENEW_SHARE * LEASE_SECONDS - RETRY_SECONDS <= ended < 30 - RETRY_SECONDS + LEASE_SECONDS
    assert (leases.holder, leading()) == ("a", 0), "the Lease expires by itself"


def test_a_deleted_lease_is_made_anew(leases: Leases) -> None:
    async def live() -> None:
        running = asyncio.create_task(Replica(seconds=60).run())
        await asyncio.sleep(30)
        leases.lease = None
        await asyncio.sleep(3)
        assert leases.holder == "a"
        await running

    run(live())


@pytest.mark.parametrize(("cleanup_seconds", "holder"), [(0.0, None), (1.0, None), (FOR_EVER, "a")])
def test_a_stop_releases_the_lease_only_after_the_work_has_ended(
    leases: Leases, cleanup_seconds: float, holder: str | None
) -> None:
    """Work that does not end lets the Lease expire instead, so that no two replicas act."""

    async def live() -> float:
        running = asyncio.create_task(Replica(cleanup_seconds=cleanup_seconds).run())
        await asyncio.sleep(30)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return now()

    assert run(live()) == 30 + min(cleanup_seconds, STOP_SECONDS)
    assert (leases.holder, leading()) == (holder, 0)


def test_a_leader_that_was_frozen_does_not_release_the_lease_of_its_successor(leases: Leases) -> None:
    async def live() -> None:
        running = asyncio.create_task(Replica().run())
        await asyncio.sleep(31)  # between two renewals
        leases.renew_for("successor")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run(live())
    assert leases.holder == "successor"
