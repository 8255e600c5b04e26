"""A withdrawn pod: ready again only with exactly the draft that it served, whatever dies or fails (promise 1)."""

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
from aurora_runtime.serving.agent.drain import LEAVE_S, QUIET_S
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.measurement import ATTEMPTS, MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_state import Pod
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import EngineState, write_atomically
from tests.unit.fakes import KEY, draft_tensors, publish_bytes, safetensors
from tests.unit.serving.agent.test_swapper import Rig

TOKEN = "the-agent-token"  # noqa: S105 - a test's
AUTH = {"Authorization": f"Bearer {TOKEN}"}
JOB = "chat-validate-v1-1"


class PodRig(Rig):
    """A pod whose agent can die, and whose launcher is this class: it obeys orders when it is told to."""

    measuring: MeasurementLease
    pod: Pod
    http: TestClient  # type: ignore[type-arg]
    now = 0.0

    def start_engine(self, boot: str) -> None:
        """As the launcher does: with ``current``, in the mode that is ordered."""
        order, current = self.folder.ordered(), self.drafts.current()
        assert current is not None
        drafted = order.mode is EngineMode.DRAFT
        self.engine.weights = current.weights.read_bytes() if drafted else b""
        self.engine.version = str(current.version) if drafted else "default"
        self.engine.paused = self.engine.updating = False
        where = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
        state = EngineState(
            boot=boot, ready=True, started=datetime.now(UTC), mode=order.mode, order=order.order, machine=where
        )
        write_atomically(self.folder.engine, state.to_json())

    def start_agent(self) -> None:
        self.swapper = self.new_swapper()
        self.measuring = MeasurementLease(
            self.client, self.swapper, self.drafts, self.folder, draft_tokens=4, token=TOKEN, clock=lambda: self.now
        )
        uploader = Uploader(self.folder.spool, self.registry)
        self.pod = Pod(
            "pod-0", self.folder, self.client, self.drafts, self.swapper, uploader, self.measuring, draft_tokens=4
        )

    async def order(self, lease: int = 60, *, begin: bool = False, measurement: str = JOB, epoch: int = 2) -> None:
        await self.measuring.order(
            MeasurementRequest(measurement=measurement, epoch=epoch, lease_seconds=lease, begin=begin)
        )

    async def trial(self, version: int | None, mode: EngineMode = EngineMode.DRAFT, measurement: str = JOB) -> bool:
        digest = None if version is None else self.digests[version]
        return await self.measuring.trial(
            TrialRequest(measurement=measurement, mode=mode, version=version, digest=digest)
        )

    async def drain(self) -> None:
        await self.measuring.step()
        self.now += max(LEAVE_S, QUIET_S) + 1
        await self.measuring.step()

    async def withdraw(self) -> None:
        await self.order(begin=True)
        await self.drain()
        assert self.phase() is MeasurementPhase.MEASURING

    def phase(self) -> MeasurementPhase | None:
        status = self.measuring.status()
        return status.phase if status else None

    async def settle(self) -> None:
        """Steps until the pod is back; the launcher restarts the engine when that is ordered."""
        for number in range(10):
            if not self.measuring.withdrawn:
                return
            state = self.folder.engine_state()
            if state is None or state.order != self.folder.ordered().order:
                self.start_engine(f"settled-{number}")
            try:
                await self.measuring.step()
            except EngineFault:
                continue
        raise AssertionError("the pod did not come back")


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[PodRig]:
    rig = PodRig(tmp_path)
    rig.engine.withdrawal = rig.folder.withdrawal
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(rig.engine.running())
        rig.client = SGLangClient(await stack.enter_async_context(ClientSession()), url, KEY)
        rig.start_engine("b1")
        rig.start_agent()
        assert await rig.pod.ready()
        rig.engine.calls.clear()
        yield rig


async def test_a_withdrawn_pod_is_not_ready_tries_drafts_and_comes_back_with_its_own(rig: PodRig) -> None:
    await rig.order(begin=True)
    assert not await rig.pod.ready()
    assert rig.phase() is MeasurementPhase.DRAINING
    assert not await rig.trial(1), "not while clients may have requests under way"
    assert rig.engine.calls.count("pause_generation") == 0
    await rig.drain()
    for version in (1, 0, 1, 2):
        assert await rig.trial(version)
        assert rig.engine.version == str(version)
        current = rig.drafts.current()
        assert current is not None
        assert current.version == 0, "a draft on trial is never what an engine starts with"
        assert not await rig.pod.ready()
    await rig.order(0)
    assert rig.phase() is MeasurementPhase.RETURNING
    await rig.settle()
    assert rig.serves(0)
    assert await rig.pod.ready()
    state = await rig.pod.state()
    assert (state.version, state.measurement) == (0, None)


async def test_asking_again_for_what_the_engine_holds_swaps_nothing_and_empties_the_cache(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.engine.calls.clear()
    assert await rig.trial(1)
    assert "pause_generation" not in rig.engine.calls


async def test_arms_take_turns_from_the_pods_own_disk(rig: PodRig) -> None:
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
    ], "the last two that were tried, and current"
    assert await rig.trial(0)
    assert rig.drafts.find(1) is None, "what is kept is bounded"


async def test_a_clients_request_that_was_let_in_late_is_not_answered_by_a_draft_on_trial(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.busy = True
    assert not await rig.trial(1)
    assert "pause_generation" not in rig.engine.calls
    held = rig.folder.withdrawn()
    assert held is not None
    assert held.trial_boot == "b1", "the guard is closed before"
    rig.engine.busy = False
    assert await rig.trial(1)


async def test_requests_that_go_on_keep_the_pod_from_being_measured(rig: PodRig) -> None:
    await rig.order(begin=True, lease=3600)
    rig.engine.busy = True
    await rig.drain()
    assert rig.phase() is MeasurementPhase.DRAINING
    rig.engine.busy = False
    await rig.drain()
    assert rig.phase() is MeasurementPhase.MEASURING


@pytest.mark.parametrize("end", ["by request", "by expiry", "agent died", "agent died in a pause"])
async def test_however_the_lease_ends_the_pod_goes_back(rig: PodRig, end: str) -> None:
    await rig.withdraw()
    await rig.trial(1)
    if end == "by request":
        await rig.order(0)
    if end == "by expiry":
        rig.now += 61
    if end == "agent died in a pause":
        await rig.client.pause()
        await rig.client.begin()
    if end.startswith("agent died"):
        rig.start_agent()
    assert rig.phase() is MeasurementPhase.RETURNING
    assert not await rig.pod.ready()
    with pytest.raises(SwapRefused):
        await rig.trial(1)
    with pytest.raises(SwapRefused):
        await rig.order()
    await rig.settle()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_agent_that_restarts_while_withdrawn_never_makes_the_trial_its_current(rig: PodRig) -> None:
    """Without the withdrawal a new agent would take what the engine holds for what it should serve."""
    await rig.withdraw()
    await rig.trial(1)
    rig.start_agent()
    for _ in range(3):
        assert not await rig.pod.ready()
        await rig.pod.state()
    current = rig.drafts.current()
    assert current is not None
    assert current.version == 0
    await rig.settle()
    assert rig.serves(0)


UPDATE = "update_weights_from_tensor"
FAULTS = [
    (route, fault) for route in ("pause_generation", UPDATE, "end_weight_update") for fault in ("before", "after")
]


@pytest.mark.parametrize(("route", "fault"), [*FAULTS, (UPDATE, "silent"), (UPDATE, "version")])
async def test_a_trial_that_fails_and_a_way_back_that_fails_end_with_the_own_draft(
    rig: PodRig, route: str, fault: str
) -> None:
    await rig.withdraw()
    rig.engine.faults = {route: fault}
    with contextlib.suppress(RuntimeFault):
        await rig.trial(1)
    rig.engine.faults = {route: fault}
    await rig.order(0)
    await rig.settle()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_engine_that_cannot_go_back_is_started_anew(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.engine.faults, rig.engine.lasting = {"update_weights_from_tensor": "silent"}, True
    await rig.order(0)
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(EngineFault):
            await rig.measuring.step()
        assert not rig.folder.ordered().order, "it may only be slow"
    await rig.measuring.step()
    assert rig.measuring.withdrawn, "not before it was seen to hold its own draft"
    assert rig.folder.ordered().order
    rig.start_engine("b2")
    await rig.measuring.step()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_other_modes_are_other_starts_of_the_engine(rig: PodRig) -> None:
    await rig.withdraw()
    for number, mode in enumerate((EngineMode.OFF, EngineMode.NGRAM)):
        assert not await rig.trial(None, mode)
        order = rig.folder.ordered()
        assert order.mode is mode
        assert not await rig.trial(None, mode)
        assert rig.folder.ordered() == order, "asking again is not another start"
        rig.start_engine(f"m{number}")
        assert await rig.trial(None, mode)
        assert not await rig.pod.ready()
    assert not await rig.trial(1)
    rig.start_engine("b2")
    assert await rig.trial(1)
    assert await rig.trial(0)
    assert await rig.trial(1)
    await rig.order(0)
    await rig.settle()
    assert rig.serves(0)
    assert await rig.pod.ready()


@pytest.mark.parametrize("died", [True, False])
async def test_from_another_mode_the_way_back_is_a_start_too(rig: PodRig, died: bool) -> None:
    await rig.withdraw()
    await rig.trial(None, EngineMode.OFF)
    rig.start_engine("off")
    if died:
        rig.start_agent()
    else:
        await rig.order(0)
    await rig.measuring.step()
    assert rig.folder.ordered().mode is EngineMode.DRAFT
    assert not await rig.pod.ready()
    await rig.settle()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_engine_that_crashes_on_trial_starts_with_the_own_draft(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.start_engine("b2")
    assert rig.serves(0)
    assert await rig.trial(1), "and can be measured on again"
    rig.start_engine("b3")
    await rig.order(0)
    await rig.settle()
    assert rig.serves(0)


async def test_without_the_guard_nothing_is_tried(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.withdrawal = None
    with pytest.raises(EngineFault, match="guard"):
        await rig.trial(1)
    assert rig.serves(0)


async def test_the_pass_is_told_to_nobody(rig: PodRig) -> None:
    await rig.withdraw()
    await rig.trial(1)
    held = rig.folder.withdrawn()
    assert held is not None
    secret = measurement_pass(TOKEN, JOB)
    assert held.pass_sha256 == hashlib.sha256(secret.encode()).hexdigest()
    state = await rig.pod.state()
    shown = [path.read_bytes() for path in rig.folder.path.glob("*.json")]
    for text in (*shown, state.to_json(), Metrics().render(state)):
        assert secret.encode() not in text
        assert TOKEN.encode() not in text


async def test_a_draft_that_a_pod_would_not_load_is_not_tried(rig: PodRig, tmp_path: Path) -> None:
    await rig.withdraw()
    bad = publish_bytes(rig.registry, tmp_path / "sources", 7, safetensors(draft_tensors(float("inf"))))
    with pytest.raises(DraftRefused):
        await rig.measuring.trial(TrialRequest(measurement=JOB, mode=EngineMode.DRAFT, version=7, digest=bad.digest))
    assert rig.serves(0)


async def test_swaps_and_withdrawals_exclude_each_other(rig: PodRig) -> None:
    await rig.withdraw()
    with pytest.raises(EngineFault, match="withdrawn"):
        await rig.swapper.request(rig.wish(1, 9))
    await rig.order(0)
    await rig.settle()
    await rig.swapper.request(rig.wish(1, 9))
    with pytest.raises(RuntimeFault):
        await rig.order(begin=True, epoch=9)
    await rig.swapper.wait()
    assert rig.serves(1)
    with pytest.raises(SwapRefused, match="older"):
        await rig.order(begin=True, epoch=8)
    await rig.order(begin=True, epoch=9)
    assert rig.measuring.withdrawn


async def test_only_the_holder_renews_and_only_the_operator_begins(rig: PodRig) -> None:
    with pytest.raises(SwapRefused):
        await rig.order()
    await rig.order(0)
    assert not rig.measuring.withdrawn, "nothing to give back"
    await rig.order(begin=True)
    await rig.order()
    with pytest.raises(SwapRefused):
        await rig.order(measurement="another")
    with pytest.raises(SwapRefused):
        await rig.order(measurement="another", begin=True)
    await rig.order(0, measurement="another")
    assert rig.phase() is MeasurementPhase.DRAINING, "another's end is not its end"
    with pytest.raises(SwapRefused):
        await rig.trial(1, measurement="another")


async def test_a_lease_is_renewed_while_a_draft_takes_its_time(rig: PodRig, monkeypatch: pytest.MonkeyPatch) -> None:
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
        await rig.order()
    go_on.set()
    assert await trial
    assert rig.phase() is MeasurementPhase.MEASURING


async def test_a_pod_whose_engine_is_not_up_or_holds_another_draft_is_not_withdrawn(rig: PodRig) -> None:
    rig.engine.version = "3"
    with pytest.raises(EngineFault, match="not the pod's current"):
        await rig.order(begin=True)
    rig.folder.engine.unlink()
    with pytest.raises(EngineFault, match="not up"):
        await rig.order(begin=True)
    assert not rig.measuring.withdrawn


async def test_the_contract_over_http(rig: PodRig) -> None:
    app = application(rig.pod, rig.swapper, rig.measuring, Metrics(), TOKEN)
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
        assert (await http.put("/v1/draft", data=rig.wish(1, 9).to_json(), headers=AUTH)).status == 503
        await rig.drain()
        answer = await http.put("/v1/measurement/trial", data=trial, headers=AUTH)
        assert answer.status == 200
        measured = AgentState.from_json(await answer.read()).measurement
        assert measured is not None
        assert measured.phase is MeasurementPhase.MEASURING
        assert measured.machine is not None
        assert measured.machine.hardware == "two cores"
        assert measured.boot == "b1"
