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
from aurora_runtime.validation.engines import replica_engine as module
from aurora_runtime.validation.engines.replica_engine import ReplicaEngine
from aurora_runtime.validation.engines.warm_up import WarmUp

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.agent_api import (
    MEASUREMENT_PREFIX,
    PASS_HEADER,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    MeasurementStatus,
    Refusal,
    TrialRequest,
    measurement_pass,
)
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import Replica, StoreSettings, ValidationSettings
from aurora_runtime.errors import EngineFault, MeasurementError, OutOfTime
from aurora_runtime.validation.load_client import BatchResult, LoadClient
from tests.assets.signing import ROOT_OWNER
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
        assert (request_body.measurement, request_body.epoch, request_body.begin) == ("job", 3, False)
        self.leases.append(request_body.lease_seconds)
        if self.lost:
            return web.Response(status=409, body=Refusal(reason="another").to_json())
        return web.Response(status=202, body=agent("p", 0).to_json())

    async def _trial(self, request: web.Request) -> web.Response:
        self._authorized(request)
        request_body = TrialRequest.from_json(await request.read())
        status = self.trials.pop(0) if self.trials else 200
        self.calls.append(f"{request_body.mode.value} {request_body.version} {status}")
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
        assert body["rid"].startswith(MEASUREMENT_PREFIX)
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


def replica_engine(scripted: Scripted, *, seconds: float = 60) -> ReplicaEngine:
    replica = Replica(
        pod="p", ip="127.0.0.1", measurement="job", epoch=3, agent_port=scripted.port, engine_port=scripted.port
    )
    settings = ValidationSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="m"),
        draft=DraftSpec(),
        validation=ValidationSpec(max_new_tokens=64),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r"),
        candidate=1,
        active=0,
        attempt=1,
        replica=replica,
    )
    drafts = {Arm.ACTIVE: registration(0), Arm.CANDIDATE: registration(1)}
    deadline = time.monotonic() + seconds
    return ReplicaEngine(replica, TOKEN, settings, drafts, warm_up=WarmUp(((1, 2), (3,)), 64, 256), deadline=deadline)


async def test_the_pod_is_drained_each_arm_is_warmed_up_and_the_pod_is_given_back(scripted: Scripted) -> None:
    scripted.draining, scripted.trials = 3, [202, 202, 200]
    async with replica_engine(scripted) as replica:
        assert replica.machine == MACHINE
        await replica.prepare(Arm.OFF)
        await replica.prepare(Arm.OFF)
        await replica.prepare(Arm.CANDIDATE)
        result = await replica.run(Arm.CANDIDATE, [(1,), (2,)], 2)
    assert (result.tokens, result.failures) == (4, 0)
    assert scripted.calls == [
        *("off None 202", "off None 202", "off None 200", "generate 24", "off None 200"),
        "off None 200",
        *("draft 1 200", "generate 64", "generate 64", "draft 1 200"),
        *("generate 64", "generate 64"),
    ]
    assert (scripted.leases[0], scripted.leases[-1]) == (module.LEASE_SECONDS, 0)


def test_the_representation_shows_neither_token_nor_pass(scripted: Scripted) -> None:
    engine = replica_engine(scripted)
    client = LoadClient(None, "http://x", 1.0, {PASS_HEADER: measurement_pass(TOKEN, "job")})  # type: ignore[arg-type]
    for shown in (repr(engine), repr(client)):
        assert TOKEN not in shown
        assert measurement_pass(TOKEN, "job") not in shown


async def test_a_restarted_engine_is_warmed_up_again(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.ACTIVE)
        scripted.calls.clear()
        scripted.boot = "b2"
        await replica.prepare(Arm.ACTIVE)
        await replica.prepare(Arm.ACTIVE)
    learns = ["generate 64", "generate 64"]
    assert scripted.calls == ["draft 0 200", *learns, "draft 0 200", "draft 0 200"], "its controller knows no draft"


async def test_every_start_of_the_engine_is_warmed_up_at_every_concurrency(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        replica.warm_up = WarmUp(((1, 2),), 64, 64, (2, 3))
        for boot, arm in (("b1", Arm.OFF), ("b2", Arm.ACTIVE), ("b2", Arm.CANDIDATE), ("b2", Arm.ACTIVE)):
            scripted.boot = boot
            await replica.prepare(arm)
    answers = [int(call.split()[1]) for call in scripted.calls if "generate" in call]
    assert answers == [24, *[24] * 5, 64, *[24] * 5, 64, *[24] * 5, 8]


async def test_after_a_swap_to_a_known_draft_the_warm_up_is_short(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        for arm in (Arm.ACTIVE, Arm.CANDIDATE, Arm.ACTIVE, Arm.CANDIDATE):
            await replica.prepare(arm)
    assert [call for call in scripted.calls if "generate" in call] == ["generate 64"] * 4 + ["generate 8"] * 2


async def test_a_draft_that_crashes_the_engine_in_its_warm_up_is_no_verdict_and_crashes_it_once(
    scripted: Scripted,
) -> None:
    scripted.crashes = {2}
    async with replica_engine(scripted) as replica:
        with pytest.raises(MeasurementError, match="candidate"):
            await replica.prepare(Arm.CANDIDATE)
        assert scripted.requests == 2
        await replica.prepare(Arm.CANDIDATE)
    assert scripted.boot == "b1x"
    assert scripted.calls[-3:] == ["draft 1 200", "generate 24", "draft 1 200"], "not at length on the next start"


async def test_an_engine_that_ends_after_the_last_answer_of_a_warm_up_is_no_verdict(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_draft = WarmUp.learn_draft

    async def learn_and_end(*arguments: Any) -> BatchResult:
        result = await learn_draft(*arguments)
        scripted.boot = "b2"
        return result

    monkeypatch.setattr(WarmUp, "learn_draft", learn_and_end)
    async with replica_engine(scripted) as replica:
        with pytest.raises(MeasurementError, match="active"):
            await replica.prepare(Arm.ACTIVE)
        await replica.prepare(Arm.ACTIVE)
    assert scripted.calls[-3:] == ["draft 0 200", "generate 24", "draft 0 200"]


async def test_a_draft_whose_warm_up_had_a_failure_is_warmed_up_shortly_on_further_starts(scripted: Scripted) -> None:
    scripted.failing = {2}
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.ACTIVE)
        assert scripted.calls == ["draft 0 200", "generate 64", "draft 0 200", "draft 0 200"]
        scripted.boot = "b2"
        await replica.prepare(Arm.ACTIVE)
        await replica.prepare(Arm.CANDIDATE)
    assert [call for call in scripted.calls if "generate" in call] == [
        "generate 64",
        "generate 24",
        *["generate 64"] * 2,
    ]


async def test_a_request_of_a_warm_up_that_does_not_reach_the_engine_is_no_verdict(scripted: Scripted) -> None:
    scripted.cut = True
    async with replica_engine(scripted) as replica:
        with pytest.raises(MeasurementError, match="1 requests did not reach p while it ran active"):
            await replica.prepare(Arm.ACTIVE)


async def test_a_lost_lease_ends_a_warm_up(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        replica.warm_up = WarmUp(((1,),) * 16, 64, 256)
        scripted.slow_seconds, scripted.lost = 0.1, True
        with pytest.raises(MeasurementError):
            await replica.prepare(Arm.ACTIVE)
    assert 1 <= scripted.requests < 16


async def test_no_draft_is_warmed_up_after_the_deadline(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        replica.deadline = time.monotonic() - 1
        await replica.prepare(Arm.ACTIVE)
    assert scripted.requests == 0


async def test_a_crash_of_an_engine_that_has_restarted_already_is_no_verdict(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.broken, scripted.boot = True, "b2"
        with pytest.raises(MeasurementError, match="candidate"):
            await replica.run(Arm.CANDIDATE, [(1,)], 1)


async def test_a_network_failure_is_no_verdict(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.cut = True
        with pytest.raises(MeasurementError, match="2 requests did not reach p while it ran candidate"):
            await replica.run(Arm.CANDIDATE, [(1,), (2,)], 2)


async def test_a_lease_lost_after_the_last_batch_is_no_verdict(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 60.0)
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        await replica.run(Arm.CANDIDATE, [(1,)], 1)
        await replica.confirm_lease()
        scripted.lost = True
        with pytest.raises(MeasurementError):
            await replica.confirm_lease()


async def test_a_lost_lease_is_no_verdict(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        scripted.lost = True
        await asyncio.sleep(0.2)
        with pytest.raises(MeasurementError):
            await replica.run(Arm.ACTIVE, [(1,)], 1)
        with pytest.raises(MeasurementError):
            await replica.prepare(Arm.ACTIVE)


async def test_a_pod_that_was_never_withdrawn_is_not_measured(scripted: Scripted) -> None:
    scripted.lost = True
    with pytest.raises(MeasurementError):
        async with replica_engine(scripted):
            raise AssertionError("the context was entered")


async def test_requests_of_clients_that_never_end_cost_the_time_limit_only(scripted: Scripted) -> None:
    scripted.draining = 10**6
    with pytest.raises(MeasurementError, match="timeoutSeconds"):
        async with replica_engine(scripted, seconds=0.1):
            raise AssertionError("the context was entered")
    assert scripted.leases[-1] == 0


async def test_the_agents_reason_for_a_refused_trial_is_in_the_error(scripted: Scripted) -> None:
    scripted.trials = [503]
    async with replica_engine(scripted) as replica:
        with pytest.raises(MeasurementError, match="cannot run candidate: 503 why"):
            await replica.prepare(Arm.CANDIDATE)


@pytest.mark.parametrize("answers", [[202], [503], [202, 503, 202]])
async def test_a_failed_request_counts_although_the_engine_is_busy_with_it_for_a_while(
    scripted: Scripted, answers: list[int]
) -> None:
    """A request that took too long for the validator still runs when the agent is asked about the engine."""
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.failing, scripted.trials = {scripted.requests + 1}, list(answers)
        assert (await replica.run(Arm.CANDIDATE, [(1,), (2,)], 1)).failures == 1
    assert scripted.trials == []


async def test_an_engine_that_crashed_is_not_waited_for_and_not_given_its_draft_again(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.calls.clear()
        scripted.broken, scripted.boot = True, ""
        with pytest.raises(MeasurementError, match="candidate"):
            await replica.run(Arm.CANDIDATE, [(1,)], 1)
    assert scripted.calls == []


@pytest.mark.parametrize(
    ("seconds", "error", "message"),
    [(0.1, OutOfTime, "not idle again in time on p"), (60.0, MeasurementError, "not idle again within 0 s: see")],
)
async def test_an_engine_that_stays_busy_costs_about_a_request_and_the_time_limit_at_most(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, seconds: float, error: type[MeasurementError], message: str
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.2 if seconds > 1 else 60.0)
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.broken, scripted.trials = True, [202] * 1000
        replica.deadline = time.monotonic() + seconds
        with pytest.raises(MeasurementError, match=message) as raised:
            await replica.run(Arm.CANDIDATE, [(1,)], 1)
    assert raised.type is error


async def test_a_batch_is_cut_at_the_deadline(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        before = scripted.requests
        scripted.slow_seconds, replica.deadline = 0.2, time.monotonic() + 0.3
        with pytest.raises(OutOfTime):
            await replica.run(Arm.CANDIDATE, [(1,)] * 8, 1)
    assert scripted.requests - before <= 2, "no request is sent after the deadline"


async def test_a_swap_that_takes_all_the_time_ends_the_measurement_without_an_error_of_the_engine(
    scripted: Scripted,
) -> None:
    async with replica_engine(scripted) as replica:
        scripted.trials = [202] * 1000
        replica.deadline = time.monotonic() + 0.1
        with pytest.raises(OutOfTime, match="candidate"):
            await replica.prepare(Arm.CANDIDATE)


async def test_failed_requests_count_and_a_warm_up_that_fails_is_no_verdict(scripted: Scripted) -> None:
    async with replica_engine(scripted) as replica:
        await replica.prepare(Arm.CANDIDATE)
        scripted.broken = True
        assert (await replica.run(Arm.CANDIDATE, [(1,)], 1)).failures == 1
        with pytest.raises(EngineFault, match="warm-up"):
            await replica.prepare(Arm.ACTIVE)
