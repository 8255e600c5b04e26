"""A withdrawn pod is ready again only with exactly the draft that it served, whatever dies or fails (promise 1)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from aurora_protocol.agent_api import (
    AgentState,
    MeasurementPhase,
    MeasurementRequest,
    TrialRequest,
    measurement_pass,
)
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.lending import MAX_RESTORE_ATTEMPTS
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.pod_files import Withdrawal
from aurora_store.errors import StoreError
from tests.unit.serving.agent.rigs import AUTH, JOB, TOKEN, BusyDisk, PodRig, SlowStore


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
    store = SlowStore(rig, monkeypatch)
    trial = asyncio.create_task(rig.trial(1))
    await store.wait_until_begun()
    for _ in range(5):
        rig.now += 40
        await rig.request_lease()
    store.released.set()
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
    order = MeasurementRequest(measurement=JOB, epoch=2, lease_seconds=60, begin=True).to_json()
    trial = TrialRequest(measurement=JOB, version=1, digest=rig.digests[1]).to_json()
    http = rig.http
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


# trial drafts --------------------------------------------------------------------------------------------------------


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


async def test_a_request_that_a_client_sent_before_the_guard_closed_ends_before_the_measurement(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.request_lease(begin=True)
    write = rig.lease._write

    async def write_and_admit(withdrawal: Withdrawal) -> None:
        await write(withdrawal)
        rig.engine.has_running_requests = withdrawal.closed

    monkeypatch.setattr(rig.lease, "_write", write_and_admit)
    await rig.drain()
    withdrawal = rig.folder.read_withdrawal()
    assert withdrawal is not None
    assert (withdrawal.closed, rig.phase()) == (True, MeasurementPhase.DRAINING)
    assert not await rig.trial(1)
    rig.engine.has_running_requests = False
    await rig.drain()
    assert await rig.trial(1)


async def test_a_request_of_the_measurement_that_takes_too_long_ends_before_the_next_draft(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.has_running_requests = True
    assert not await rig.trial(1)
    assert "pause_generation" not in rig.engine.calls
    rig.engine.has_running_requests = False
    assert await rig.trial(1)


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
    assert not rig.engine.faults, "the fault has occurred"
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
        assert not rig.is_restart_ordered(), "the engine may only be slow"
    await rig.lease.advance()
    assert rig.lease.withdrawn, "the pod returns only when the engine was seen to hold its current draft"
    assert rig.is_restart_ordered()
    await rig.lease.advance()
    assert rig.lease.withdrawn, "the launcher has not ended the engine yet"
    rig.start_engine("b2")
    await rig.lease.advance()
    assert rig.serves(0)
    assert await rig.pod.ready()


async def test_an_engine_that_crashes_in_a_trial_starts_with_the_current_draft_and_the_measurement_is_over(
    rig: PodRig,
) -> None:
    await rig.withdraw()
    await rig.trial(1)
    rig.start_engine("b2")
    assert await rig.pod.ready()
    assert rig.serves(0)
    with pytest.raises(SwapRefused):
        await rig.trial(1)
    with pytest.raises(SwapRefused):
        await rig.request_lease()
    await rig.withdraw()
    assert await rig.trial(1), "the pod can be lent again"


async def test_a_withdrawal_that_the_agent_writes_while_the_engine_starts_again_ends(rig: PodRig) -> None:
    await rig.withdraw()
    late = rig.folder.withdrawal.read_bytes()
    rig.start_engine("b2")
    rig.folder.withdrawal.write_bytes(late)
    with pytest.raises(EngineFault, match="started again"):
        await rig.trial(1)
    await rig.request_lease(0)
    await rig.lease.advance()
    assert not rig.lease.withdrawn
    assert rig.serves(0)


async def test_without_the_guard_no_trial_draft_is_loaded(rig: PodRig) -> None:
    await rig.withdraw()
    rig.engine.withdrawal_file = None
    with pytest.raises(EngineFault, match="guard"):
        await rig.trial(1)
    assert rig.serves(0)
