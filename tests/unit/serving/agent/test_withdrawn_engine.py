"""Trial drafts on a withdrawn engine, which always returns to the current draft (promise 1)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from aurora_protocol.agent_api import MeasurementPhase, TrialRequest
from aurora_runtime.errors import DraftRefused, EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.lending import MAX_RESTORE_ATTEMPTS
from aurora_runtime.serving.pod_files import Withdrawal
from tests.unit.fakes import draft_tensors, publish_bytes, safetensors
from tests.unit.serving.agent.rigs import JOB, PodRig


@pytest.fixture
def rig(pod_rig: PodRig) -> PodRig:
    return pod_rig


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


async def test_a_trial_of_a_refused_draft_never_reaches_the_engine(rig: PodRig, tmp_path: Path) -> None:
    await rig.withdraw()
    bad = publish_bytes(rig.registry, tmp_path / "sources", 7, safetensors(draft_tensors(float("inf"))))
    with pytest.raises(DraftRefused):
        await rig.lease.request_trial(TrialRequest(measurement=JOB, version=7, digest=bad.digest))
    assert rig.serves(0)
