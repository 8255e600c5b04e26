"""A withdrawn pod is ready again only with exactly the draft that it served, whatever dies or fails (promise 1)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer

from aurora_protocol.agent_api import (
    AgentState,
    EngineMode,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    TrialRequest,
    measurement_pass,
)
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import DraftRefused, EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.drain import ENDPOINT_REMOVAL_SECONDS, QUIET_SECONDS
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.measurement import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_state import PodObserver
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.agent.withdrawn_engine import MAX_RESTORE_ATTEMPTS
from aurora_runtime.serving.pod_files import write_atomically
from aurora_runtime.serving.pod_records import EngineState
from tests.unit.fakes import KEY, draft_tensors, publish_bytes, safetensors
from tests.unit.serving.agent.test_swapper import Rig

TOKEN = "the-agent-token"  # noqa: S105 - a test's
AUTH = {"Authorization": f"Bearer {TOKEN}"}
JOB = "chat-validate-v1-1"


class PodRig(Rig):
    """A pod whose agent can die. This class is its launcher, and follows a mode order when a test says so."""

    lease: MeasurementLease
    pod: PodObserver
    http: TestClient  # type: ignore[type-arg]
    now = 0.0

    def start_engine(self, boot: str) -> None:
        """Start the engine as the launcher does: with ``current``, in the ordered mode."""
        order, current = self.folder.read_mode_order(), self.drafts.current()
        assert current is not None
        with_draft = order.mode is EngineMode.DRAFT
        self.engine.weights = current.weights.read_bytes() if with_draft else b""
        self.engine.version = str(current.version) if with_draft else "default"
        self.engine.paused = self.engine.updating = False
        machine = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
        state = EngineState(
            boot=boot,
            ready=True,
            started_at=datetime.now(UTC),
            mode=order.mode,
            order_id=order.order_id,
            machine=machine,
        )
        write_atomically(self.folder.engine, state.to_json())

    def start_agent(self) -> None:
        self.swapper = self.new_swapper()
        pod = self.context()
        self.lease = MeasurementLease(pod, self.swapper, token=TOKEN, clock=lambda: self.now)
        self.pod = PodObserver(pod, self.swapper, Uploader(self.folder.spool, self.registry), self.lease)

    async def request_lease(
        self, lease_seconds: int = 60, *, begin: bool = False, measurement: str = JOB, epoch: int = 2
    ) -> None:
        await self.lease.request(
            MeasurementRequest(measurement=measurement, epoch=epoch, lease_seconds=lease_seconds, begin=begin)
        )

    async def trial(self, version: int | None, mode: EngineMode = EngineMode.DRAFT, measurement: str = JOB) -> bool:
        digest = None if version is None else self.digests[version]
        return await self.lease.request_trial(
            TrialRequest(measurement=measurement, mode=mode, version=version, digest=digest)
        )

    async def drain(self) -> None:
        await self.lease.advance()
        self.now += max(ENDPOINT_REMOVAL_SECONDS, QUIET_SECONDS) + 1
        await self.lease.advance()

    async def withdraw(self) -> None:
        await self.request_lease(begin=True)
        await self.drain()
        assert self.phase() is MeasurementPhase.MEASURING

    def phase(self) -> MeasurementPhase | None:
        status = self.lease.status()
        return status.phase if status else None

    async def return_to_service(self) -> None:
        """Advance until the pod has returned; the launcher starts the engine again when the agent orders it."""
        for number in range(10):
            if not self.lease.withdrawn:
                return
            state = self.folder.read_engine_state()
            if state is None or state.order_id != self.folder.read_mode_order().order_id:
                self.start_engine(f"returned-{number}")
            try:
                await self.lease.advance()
            except EngineFault:
                continue
        raise AssertionError("the pod did not return")


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[PodRig]:
    rig = PodRig(tmp_path)
    rig.engine.withdrawal_file = rig.folder.withdrawal
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(rig.engine.running())
        rig.client = SGLangClient(await stack.enter_async_context(ClientSession()), url, KEY)
        rig.start_engine("b1")
        rig.start_agent()
        assert await rig.pod.ready()
        rig.engine.calls.clear()
        yield rig


async def test_a_withdrawn_pod_is_not_ready_tries_drafts_and_returns_with_its_current_draft(rig: PodRig) -> None:
    await rig.request_lease(begin=True)
    assert not await rig.pod.ready()
    assert rig.phase() is MeasurementPhase.DRAINING
    assert not await rig.trial(1), "not while clients may have running requests"
    assert rig.engine.calls.count("pause_generation") == 0
    await rig.drain()
    for version in (1, 0, 1, 2):
        assert await rig.trial(version)
        assert rig.engine.version == str(version)
        current = rig.drafts.current()
        assert current is not None
        assert current.version == 0, "an engine never starts with a trial draft"
        assert not await rig.pod.ready()
    await rig.request_lease(0)
    assert rig.phase() is MeasurementPhase.RETURNING
    await rig.return_to_service()
    assert rig.serves(0)
    assert await rig.pod.ready()
    state = await rig.pod.state()
    assert (state.version, state.measurement) == (0, None)


async def test_a_repeated_trial_request_loads_nothing_and_flushes_the_cache(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.engine.calls.clear()
    assert await rig.trial(1)
    assert "pause_generation" not in rig.engine.calls


async def test_two_trial_drafts_take_turns_from_the_pods_own_disk(rig: PodRig) -> None:
    await rig.withdraw()
    assert await rig.trial(1)
    rig.objects.down = True
    for version in (0, 1, 0, 1):
        assert await rig.trial(version)
        assert rig.engine.version == str(version)
    rig.objects.down = False
    assert await rig.trial(2)
    assert sorted(path.name[:8] for path in rig.folder.drafts.iterdir() if not path.is_symlink()) == [
        f"{version:08d}" for version in range(3)
    ], "the last two trial drafts, and current"
    assert await rig.trial(0)
    assert rig.drafts.find_staged(1) is None, "the cache is bounded"


async def test_a_client_request_admitted_late_is_not_answered_by_a_trial_draft(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.has_running_requests = True
    assert not await rig.trial(1)
    assert "pause_generation" not in rig.engine.calls
    withdrawal = rig.folder.read_withdrawal()
    assert withdrawal is not None
    assert withdrawal.trial_boot == "b1", "the guard closes before the load"
    rig.engine.has_running_requests = False
    assert await rig.trial(1)


async def test_running_requests_keep_the_pod_draining(rig: PodRig) -> None:
    await rig.request_lease(begin=True, lease_seconds=3600)
    rig.engine.has_running_requests = True
    await rig.drain()
    assert rig.phase() is MeasurementPhase.DRAINING
    rig.engine.has_running_requests = False
    await rig.drain()
    assert rig.phase() is MeasurementPhase.MEASURING


@pytest.mark.parametrize("end", ["by request", "by expiry", "agent died", "agent died in a pause"])
async def test_the_pod_returns_however_the_lease_ends(rig: PodRig, end: str) -> None:
    await rig.withdraw()
    await rig.trial(1)
    if end == "by request":
        await rig.request_lease(0)
    if end == "by expiry":
        rig.now += 61
    if end == "agent died in a pause":
        await rig.client.pause_generation()
        await rig.client.begin_weight_update()
    if end.startswith("agent died"):
        rig.start_agent()
    assert rig.phase() is MeasurementPhase.RETURNING
    assert not await rig.pod.ready()
    with pytest.raises(SwapRefused):
        await rig.trial(1)
    with pytest.raises(SwapRefused):
        await rig.request_lease()
    await rig.return_to_service()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_agent_that_restarts_while_withdrawn_never_makes_the_trial_draft_current(rig: PodRig) -> None:
    """Without the withdrawal a new agent would make the engine's draft current."""
    await rig.withdraw()
    await rig.trial(1)
    rig.start_agent()
    for _ in range(3):
        assert not await rig.pod.ready()
        await rig.pod.state()
    current = rig.drafts.current()
    assert current is not None
    assert current.version == 0
    await rig.return_to_service()
    assert rig.serves(0)


UPDATE = "update_weights_from_tensor"
FAULTS = [
    (route, fault) for route in ("pause_generation", UPDATE, "end_weight_update") for fault in ("before", "after")
]


@pytest.mark.parametrize(("route", "fault"), [*FAULTS, (UPDATE, "silent"), (UPDATE, "version"), (UPDATE, "unloaded")])
async def test_failed_trials_and_failed_restores_end_with_the_current_draft(
    rig: PodRig, route: str, fault: str
) -> None:
    await rig.withdraw()
    rig.engine.faults = {route: fault}
    with contextlib.suppress(RuntimeFault):
        await rig.trial(1)
    assert not rig.engine.faults, "the fault was met"
    await rig.trial(1)
    assert rig.engine.version == "1", "a trial that failed may be requested again"
    rig.engine.faults = {route: fault}
    await rig.request_lease(0)
    await rig.return_to_service()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_engine_that_cannot_restore_its_draft_is_started_again(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.engine.faults, rig.engine.faults_persist = {"update_weights_from_tensor": "silent"}, True
    await rig.request_lease(0)
    for _ in range(MAX_RESTORE_ATTEMPTS - 1):
        with pytest.raises(EngineFault):
            await rig.lease.advance()
        assert not rig.folder.read_mode_order().order_id, "the engine may only be slow"
    await rig.lease.advance()
    assert rig.lease.withdrawn, "the pod returns only when the engine was seen to hold its current draft"
    assert rig.folder.read_mode_order().order_id
    rig.start_engine("b2")
    await rig.lease.advance()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_another_mode_is_another_start_of_the_engine(rig: PodRig) -> None:
    await rig.withdraw()
    for number, mode in enumerate((EngineMode.OFF, EngineMode.NGRAM)):
        assert not await rig.trial(None, mode)
        order = rig.folder.read_mode_order()
        assert order.mode is mode
        assert not await rig.trial(None, mode)
        assert rig.folder.read_mode_order() == order, "a repeated request is not another start"
        rig.start_engine(f"m{number}")
        assert await rig.trial(None, mode)
        assert not await rig.pod.ready()
    assert not await rig.trial(1)
    rig.start_engine("b2")
    assert await rig.trial(1)
    assert await rig.trial(0)
    assert await rig.trial(1)
    await rig.request_lease(0)
    await rig.return_to_service()
    assert rig.serves(0)
    assert await rig.pod.ready()


@pytest.mark.parametrize("died", [True, False])
async def test_a_pod_in_another_mode_returns_by_a_start_of_the_engine(rig: PodRig, died: bool) -> None:
    await rig.withdraw()
    await rig.trial(None, EngineMode.OFF)
    rig.start_engine("off")
    if died:
        rig.start_agent()
    else:
        await rig.request_lease(0)
    await rig.lease.advance()
    assert rig.folder.read_mode_order().mode is EngineMode.DRAFT
    assert not await rig.pod.ready()
    await rig.return_to_service()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_engine_that_crashes_in_a_trial_starts_with_the_current_draft(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.start_engine("b2")
    assert rig.serves(0)
    assert await rig.trial(1), "the engine can be measured again"
    rig.start_engine("b3")
    await rig.request_lease(0)
    await rig.return_to_service()
    assert rig.serves(0)


async def test_without_the_guard_no_trial_draft_is_loaded(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.withdrawal_file = None
    with pytest.raises(EngineFault, match="guard"):
        await rig.trial(1)
    assert rig.serves(0)


async def test_the_pass_is_never_shown(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    withdrawal = rig.folder.read_withdrawal()
    assert withdrawal is not None
    secret = measurement_pass(TOKEN, JOB)
    assert withdrawal.pass_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    state = await rig.pod.state()
    shown = [path.read_bytes() for path in rig.folder.path.glob("*.json")]
    for text in (*shown, state.to_json(), Metrics().render(state)):
        assert secret.encode() not in text
        assert TOKEN.encode() not in text


async def test_a_draft_that_no_pod_would_load_is_not_tried(rig: PodRig, tmp_path: Path) -> None:
    await rig.withdraw()
    bad = publish_bytes(rig.registry, tmp_path / "sources", 7, safetensors(draft_tensors(float("inf"))))
    with pytest.raises(DraftRefused):
        await rig.lease.request_trial(
            TrialRequest(measurement=JOB, mode=EngineMode.DRAFT, version=7, digest=bad.digest)
        )
    assert rig.serves(0)


async def test_swaps_and_withdrawals_exclude_each_other(rig: PodRig) -> None:
    await rig.withdraw()
    with pytest.raises(EngineFault, match="withdrawn"):
        await rig.swapper.request(rig.swap_request(1, 9))
    await rig.request_lease(0)
    await rig.return_to_service()
    await rig.swapper.request(rig.swap_request(1, 9))
    with pytest.raises(RuntimeFault):
        await rig.request_lease(begin=True, epoch=9)
    await rig.swapper.wait()
    assert rig.serves(1)
    with pytest.raises(SwapRefused, match="older"):
        await rig.request_lease(begin=True, epoch=8)
    await rig.request_lease(begin=True, epoch=9)
    assert rig.lease.withdrawn


async def test_only_the_holder_renews_a_lease_and_only_the_operator_begins_one(rig: PodRig) -> None:
    with pytest.raises(SwapRefused):
        await rig.request_lease()
    await rig.request_lease(0)
    assert not rig.lease.withdrawn, "there is no lease to end"
    await rig.request_lease(begin=True)
    await rig.request_lease()
    with pytest.raises(SwapRefused):
        await rig.request_lease(measurement="another")
    with pytest.raises(SwapRefused):
        await rig.request_lease(measurement="another", begin=True)
    await rig.request_lease(0, measurement="another")
    assert rig.phase() is MeasurementPhase.DRAINING, "another measurement cannot end this lease"
    with pytest.raises(SwapRefused):
        await rig.trial(1, measurement="another")


async def test_a_lease_is_renewed_while_a_draft_downloads(rig: PodRig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.withdraw()
    staging, go_on = threading.Event(), threading.Event()
    stage = rig.drafts.stage

    def slow(*arguments: Any, **more: Any) -> Any:
        staging.set()
        go_on.wait(10)
        return stage(*arguments, **more)

    monkeypatch.setattr(rig.drafts, "stage", slow)
    trial = asyncio.create_task(rig.trial(1))
    await asyncio.to_thread(staging.wait, 10)
    for _ in range(5):
        rig.now += 40
        await rig.request_lease()
    go_on.set()
    assert await trial
    assert rig.phase() is MeasurementPhase.MEASURING


async def test_a_pod_whose_engine_is_not_up_or_holds_another_draft_is_not_withdrawn(rig: PodRig) -> None:
    rig.engine.version = "3"
    with pytest.raises(EngineFault, match="not the pod's current"):
        await rig.request_lease(begin=True)
    rig.folder.engine.unlink()
    with pytest.raises(EngineFault, match="not up"):
        await rig.request_lease(begin=True)
    assert not rig.lease.withdrawn


async def test_the_measurement_api_over_http(rig: PodRig) -> None:
    app = application(rig.pod, rig.swapper, rig.lease, Metrics(), TOKEN)
    order = MeasurementRequest(measurement=JOB, epoch=2, lease_seconds=60, begin=True).to_json()
    trial = TrialRequest(measurement=JOB, mode=EngineMode.DRAFT, version=1, digest=rig.digests[1]).to_json()
    async with TestClient(TestServer(app)) as http:
        for path, body in (("/v1/measurement", order), ("/v1/measurement/trial", trial)):
            assert (await http.put(path, data=body)).status == 401
            assert (await http.put(path, data=b'{"x": 1}', headers=AUTH)).status == 400
        assert (await http.put("/v1/measurement/trial", data=trial, headers=AUTH)).status == 409
        answer = await http.put("/v1/measurement", data=order, headers=AUTH)
        assert answer.status == 202
        state = AgentState.from_json(await answer.read())
        assert state.measurement is not None
        assert (state.engine_ready, state.boot, state.version) == (False, "", None)
        assert (await http.get("/readyz")).status == 503
        assert (await http.put("/v1/measurement/trial", data=trial, headers=AUTH)).status == 202
        assert (await http.put("/v1/draft", data=rig.swap_request(1, 9).to_json(), headers=AUTH)).status == 503
        await rig.drain()
        answer = await http.put("/v1/measurement/trial", data=trial, headers=AUTH)
        assert answer.status == 200
        measured = AgentState.from_json(await answer.read()).measurement
        assert measured is not None
        assert measured.phase is MeasurementPhase.MEASURING
        assert measured.machine is not None
        assert measured.machine.hardware == "two cores"
        assert measured.boot == "b1"
