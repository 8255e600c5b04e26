"""A withdrawn pod is ready again only with exactly the draft that it served, whatever dies or fails (promise 1)."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from aurora_protocol.agent_api import (
    AgentState,
    MeasurementPhase,
    MeasurementRequest,
    TrialRequest,
    measurement_pass,
)
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_store.errors import StoreError
from tests.unit.serving.agent.rigs import AUTH, JOB, TOKEN, BusyDisk, PodRig, SlowStore


@pytest.fixture
def rig(pod_rig: PodRig) -> PodRig:
    return pod_rig


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


async def test_a_damaged_order_file_blocks_no_withdrawal(rig: PodRig) -> None:
    rig.folder.swap_request.write_bytes(b"")
    await rig.withdraw()
    assert rig.folder.read_withdrawal() is not None


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


@pytest.mark.parametrize("damaged", [b"", b'{"measurement": "chat'])
async def test_a_damaged_withdrawal_ends_the_measurement_and_the_pod_returns_with_a_new_engine_start(
    rig: PodRig, damaged: bytes
) -> None:
    """The checksum of the current draft is lost, so the engine that may hold a trial draft is not trusted."""
    await rig.withdraw()
    await rig.trial(1)
    rig.folder.withdrawal.write_bytes(damaged)
    assert rig.phase() is MeasurementPhase.RETURNING
    assert not await rig.pod.ready()
    for call in (rig.request_lease(), rig.trial(1)):
        with pytest.raises(SwapRefused):
            await call
    await rig.lease.advance()
    assert not await rig.pod.ready()
    rig.start_engine("b2")  # the launcher ends the engine, and the next start removes the file
    assert rig.serves(0)
    assert await rig.pod.ready()


@pytest.mark.parametrize("first", ["swap", "withdrawal"])
async def test_of_a_swap_and_a_withdrawal_at_once_only_the_first_begins(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    disk = BusyDisk(monkeypatch)
    swap, withdrawal = rig.swapper.request(rig.swap_request(1, 2)), rig.request_lease(begin=True)
    earlier, later = (swap, withdrawal) if first == "swap" else (withdrawal, swap)
    begun = asyncio.create_task(earlier)
    await disk.wait_until_begun()
    late = asyncio.create_task(later)
    await asyncio.sleep(0.2)
    assert not late.done()
    disk.released.set()
    await begun
    with pytest.raises(RuntimeFault):
        await late
    await rig.swapper.wait()
    assert rig.lease.withdrawn is (first == "withdrawal")
    assert rig.serves(1 if first == "swap" else 0)


async def test_only_the_holder_renews_a_lease_and_only_a_new_measurement_begins_one(rig: PodRig) -> None:
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
    with pytest.raises(EngineFault):
        await rig.request_lease(begin=True)
    rig.engine.version, rig.engine.digests = "0", [rig.digests[0], rig.digests[1]]
    with pytest.raises(EngineFault):
        await rig.request_lease(begin=True)
    rig.folder.engine.unlink()
    with pytest.raises(EngineFault):
        await rig.request_lease(begin=True)
    assert not rig.lease.withdrawn


async def test_the_measurement_api_over_http(rig: PodRig) -> None:
    app = application(rig.pod, rig.swapper, rig.lease, Metrics(), lambda: TOKEN)
    order = MeasurementRequest(measurement=JOB, epoch=2, lease_seconds=60, begin=True).to_json()
    trial = TrialRequest(measurement=JOB, version=1, digest=rig.digests[1]).to_json()
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


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_download_of_a_trial_draft_ends_with_the_lease(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """A slow store must not hold the pod out of its Service, and a late download must not load its draft."""
    await rig.withdraw()
    store = SlowStore(rig, monkeypatch, deaf=deaf)
    trial = asyncio.create_task(rig.trial(1))
    await store.wait_until_begun()
    rig.now += 61
    if deaf:
        store.released.set()
    with pytest.raises((StoreError, EngineFault)):
        await asyncio.wait_for(trial, 10)
    assert rig.engine.calls.count("pause_generation") == 0
    await rig.return_to_service()
    assert rig.serves(0)
