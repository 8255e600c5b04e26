"""Measuring on a replica with a scripted agent and engine: when to wait, when to give up, and that the pod returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from aurora_protocol.agent_api import (
    PASS_HEADER,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    MeasurementStatus,
    Refusal,
    TrialRequest,
    measurement_pass,
)
from aurora_protocol.errors import AgentError, Fenced
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import Replica
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation import lent_replica as module
from aurora_runtime.validation.lent_replica import LentReplica
from aurora_runtime.validation.measured_engine import MEASURED, BatchResult, LoadClient, MeasuredEngine
from tests.unit.operator.worlds import agent, registration

TOKEN = "the-agent-token"  # noqa: S105 - a test's
MACHINE = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")


class Scripted:
    """An agent and an engine in one server."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.leases: list[int] = []
        self.trials: list[int] = []  # HTTP statuses of the next trials, before 200
        self.draining = 1  # how many more answers say that requests of clients are still running
        self.lost = False  # the agent says that the lease is lost
        self.silent = False  # the agent renews no lease
        self.broken = self.cut = False  # the engine answers requests with an error, or closes the connection
        self.boot = "b1"
        self.slow_seconds = 0.0  # how long the engine takes for an answer
        self.crashes: set[int] = set()  # the requests, counted from 1, that end the engine: they fail, and it restarts
        self.failing: set[int] = set()  # the requests that fail and do the engine no harm
        self.requests = 0
        self.port = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/state", self._state)
        app.router.add_put("/v1/measurement", self._lease)
        app.router.add_put("/v1/measurement/trial", self._trial)
        app.router.add_post("/generate", self._generate)
        return app

    def _authorized(self, request: web.Request) -> None:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"

    async def _state(self, request: web.Request) -> web.Response:
        self._authorized(request)
        phase = MeasurementPhase.DRAINING if self.draining > 0 else MeasurementPhase.MEASURING
        self.draining -= 1
        lent = MeasurementStatus(measurement="job", phase=phase, machine=MACHINE, boot=self.boot)
        return web.Response(body=agent("p", 0, measurement=lent).to_json())

    async def _lease(self, request: web.Request) -> web.Response:
        self._authorized(request)
        request_body = MeasurementRequest.from_json(await request.read())
        assert (request_body.measurement, request_body.epoch) == ("job", 3)
        assert request_body.begin == (not self.leases), "a lease that was lost must not begin anew"
        self.leases.append(request_body.lease_seconds)
        if self.silent:
            return web.Response(status=500)
        if self.lost:
            return web.Response(status=409, body=Refusal(reason="another").to_json())
        return web.Response(status=202, body=agent("p", 0).to_json())

    async def _trial(self, request: web.Request) -> web.Response:
        self._authorized(request)
        request_body = TrialRequest.from_json(await request.read())
        status = self.trials.pop(0) if self.trials else 200
        self.calls.append(f"draft {request_body.version} {status}")
        if status > 202:
            return web.Response(status=status, text="why")
        lent = MeasurementStatus(measurement="job", phase=MeasurementPhase.MEASURING, machine=MACHINE, boot=self.boot)
        return web.Response(status=status, body=agent("p", 0, measurement=lent).to_json())

    async def _generate(self, request: web.Request) -> web.Response:
        assert request.headers[PASS_HEADER] == measurement_pass(TOKEN, "job")
        assert "Authorization" not in request.headers, (
            "clients can reach this port: the agent's token must not go there"
        )
        body: dict[str, Any] = await request.json()
        assert body["sampling_params"]["custom_params"]["aurora"]["trace"] is False
        if self.cut:
            assert request.transport is not None
            request.transport.abort()
        self.requests += 1
        await asyncio.sleep(self.slow_seconds)
        if self.requests in self.crashes:
            self.boot += "x"
        if self.broken or self.requests in self.crashes | self.failing:
            return web.Response(status=500)
        self.calls.append(f"generate {body['sampling_params']['max_new_tokens']}")
        return web.json_response({"output_ids": [7, 8], "meta_info": {"finish_reason": {"type": "length"}}})


@pytest_asyncio.fixture
async def scripted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scripted]:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    scripted = Scripted()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(TestServer(scripted.app()))
        assert server.port is not None
        scripted.port = server.port
        yield scripted


def lent(scripted: Scripted, *, seconds: float = 60) -> LentReplica:
    replica = Replica(
        pod="p", ip="127.0.0.1", measurement="job", epoch=3, agent_port=scripted.port, engine_port=scripted.port
    )
    drafts = {Arm.ACTIVE: registration(0), Arm.CANDIDATE: registration(1)}
    return LentReplica(replica, TOKEN, drafts, time.monotonic() + seconds)


def measured(replica: LentReplica) -> MeasuredEngine:
    return MeasuredEngine(replica, (1, 2), 64)


async def answer(replica: LentReplica, arm: Arm = Arm.CANDIDATE, requests: int = 1) -> BatchResult:
    """One batch on the draft that the engine holds."""
    result = await replica.client(arm, MEASURED).batch([(1,)] * requests, 1, 64)
    await replica.confirm(arm, result)
    return result


async def test_the_pod_is_drained_a_swap_is_warmed_up_and_the_pod_is_given_back(scripted: Scripted) -> None:
    scripted.draining, scripted.trials = 3, [202, 202, 200]
    async with lent(scripted).lent() as replica:
        assert replica.machine == MACHINE
        engine = measured(replica)
        for arm in (Arm.OFF, Arm.OFF, Arm.CANDIDATE, Arm.OFF):
            await engine.prepare(arm)
        result = await engine.run(Arm.CANDIDATE, [(1,), (2,)], 2)
    assert (result.tokens, result.failures) == (4, 0)
    assert scripted.calls == [
        *("draft 0 202", "draft 0 202", "draft 0 200"),
        "draft 0 200",
        *("draft 1 200", "generate 24", "draft 1 200"),
        "draft 1 200",
        *("generate 64", "generate 64"),
    ], "off needs no swap"
    assert (scripted.leases[0], scripted.leases[-1]) == (module.LEASE_SECONDS, 0)


def test_the_representation_shows_neither_token_nor_pass(scripted: Scripted) -> None:
    client = LoadClient(None, "http://x", {PASS_HEADER: measurement_pass(TOKEN, "job")})  # type: ignore[arg-type]
    for shown in (repr(lent(scripted)), repr(client)):
        assert TOKEN not in shown
        assert measurement_pass(TOKEN, "job") not in shown


@pytest.mark.parametrize("boot", ["b2", ""])
async def test_an_engine_that_was_started_again_or_is_down_is_not_given_a_draft_and_is_no_verdict(
    scripted: Scripted, boot: str
) -> None:
    """The draft may have ended the engine, and a new start knows nothing about either draft."""
    async with lent(scripted).lent() as replica:
        await replica.hold(Arm.CANDIDATE)
        scripted.calls.clear()
        scripted.boot = boot
        for call in (replica.hold(Arm.CANDIDATE), answer_a_failing_request(scripted, replica)):
            with pytest.raises(MeasurementError, match="the engine of p ended"):
                await call
    assert scripted.calls == []


async def answer_a_failing_request(scripted: Scripted, replica: LentReplica) -> None:
    scripted.broken = True
    await answer(replica)


async def test_an_engine_that_crashes_in_a_batch_is_no_verdict(scripted: Scripted) -> None:
    async with lent(scripted).lent() as replica:
        await replica.hold(Arm.CANDIDATE)
        scripted.crashes = {2}
        with pytest.raises(MeasurementError, match="the engine of p ended"):
            await answer(replica, requests=3)


async def test_a_network_failure_is_no_verdict(scripted: Scripted) -> None:
    async with lent(scripted).lent() as replica:
        scripted.cut = True
        with pytest.raises(MeasurementError, match="2 requests did not reach p while it ran candidate"):
            await answer(replica, requests=2)


async def test_failed_requests_count_once_the_engine_is_idle_again(scripted: Scripted) -> None:
    """A request that took too long for the validator still runs when the agent is asked about the engine."""
    async with lent(scripted).lent() as replica:
        await replica.hold(Arm.CANDIDATE)
        scripted.failing, scripted.trials = {1}, [202, 202]
        assert (await answer(replica, requests=2)).failures == 1
    assert scripted.trials == []


async def test_a_lost_lease_is_no_verdict(scripted: Scripted) -> None:
    async with lent(scripted).lent() as replica:
        await answer(replica)
        scripted.lost = True
        with pytest.raises(Fenced, match="another"):
            await answer(replica)


async def test_a_lease_that_cannot_be_confirmed_is_no_verdict(scripted: Scripted) -> None:
    async with lent(scripted).lent() as replica:
        scripted.silent = True
        with pytest.raises(AgentError):
            await answer(replica)


async def test_the_lease_is_renewed_during_a_long_batch_although_the_agent_fails_for_a_while(
    scripted: Scripted,
) -> None:
    async with lent(scripted).lent() as replica:
        scripted.slow_seconds, before = 0.5, len(scripted.leases)
        scripted.silent = True
        asyncio.get_running_loop().call_later(0.2, setattr, scripted, "silent", False)
        await answer(replica)
        assert len(scripted.leases) >= before + 2, "before the confirmation, too"


async def test_a_pod_that_its_agent_does_not_lend_is_not_measured(scripted: Scripted) -> None:
    scripted.lost = True
    with pytest.raises(Fenced):
        async with lent(scripted).lent():
            raise AssertionError("the context was entered")


async def test_requests_of_clients_that_never_end_cost_the_time_limit_only(scripted: Scripted) -> None:
    scripted.draining = 10**6
    with pytest.raises(MeasurementError, match="timeoutSeconds"):
        async with lent(scripted, seconds=0.1).lent():
            raise AssertionError("the context was entered")
    assert scripted.leases[-1] == 0


async def test_a_swap_that_takes_all_the_time_ends_the_measurement(scripted: Scripted) -> None:
    async with lent(scripted).lent() as replica:
        scripted.trials = [202] * 1000
        replica.deadline = time.monotonic() + 0.1
        with pytest.raises(MeasurementError, match="version 1 was not loaded"):
            await replica.hold(Arm.CANDIDATE)
