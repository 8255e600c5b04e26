"""A swap in an engine that fails at any call never leaves it paused or with a wrong draft."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from aurora_protocol.agent_api import SwapPhase, SwapRequest
from aurora_runtime.engine.draft_swap import DraftFile
from aurora_runtime.errors import EngineFault, SwapRefused
from tests.unit.fakes import FakeEngine, draft_tensors, publish_bytes, safetensors
from tests.unit.serving.agent.rigs import PodRig, SlowStore


async def test_a_swap_pauses_updates_the_draft_only_and_resumes(rig: PodRig) -> None:
    await rig.swap(1)
    assert rig.serves(1)
    assert rig.engine.calls == [*FakeEngine.ADMIN_ROUTES]
    status = rig.swapper.status
    assert (status.phase, status.version, status.error) == (SwapPhase.IDLE, 1, "")
    assert status.pause_seconds is not None
    assert [result for result, _ in rig.results] == ["success"]


SWAP_ROUTES = [name for name in FakeEngine.ADMIN_ROUTES if name != "weights_checker"]


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("route", SWAP_ROUTES)
async def test_a_failure_at_any_call_ends_with_one_of_the_two_drafts(rig: PodRig, route: str, fault: str) -> None:
    rig.engine.faults = {route: fault}
    await rig.swap(1)
    if route == "continue_generation":
        assert rig.serves(1), "resuming is retried"
    else:
        assert rig.serves(0)
        assert rig.swapper.status.phase is SwapPhase.FAILED
        assert route in rig.swapper.status.error
    await rig.swap(2, epoch=3)
    assert rig.serves(2), "the next swap works"


async def test_a_draft_that_cannot_be_restored_is_reported(rig: PodRig) -> None:
    rig.engine.faults = {"update_weights_from_tensor": "after"}
    rig.engine.faults_persist = True
    await rig.swap(1)
    rig.engine.faults_persist = False
    assert rig.swapper.status.phase is SwapPhase.FAILED
    assert "could not be restored" in rig.swapper.status.error
    assert not rig.engine.paused
    current = rig.drafts.current()
    assert current is not None
    assert current.version == 0, "a restart starts with the draft that passed its gate"


async def test_a_swap_that_fails_because_the_engine_ended_is_transient(rig: PodRig) -> None:
    rig.engine.faults = dict.fromkeys(FakeEngine.ADMIN_ROUTES, "gone")
    rig.engine.faults_persist = True
    await rig.swap(1)
    assert (rig.swapper.status.phase, rig.swapper.status.transient) == (SwapPhase.FAILED, True)
    current = rig.drafts.current()
    assert current is not None
    assert current.version == 0, "the next engine starts with the draft that passed its gate"


async def test_a_draft_that_is_refused_never_touches_the_engine(rig: PodRig, tmp_path: Path) -> None:
    bad = publish_bytes(rig.registry, tmp_path / "sources", 7, safetensors(draft_tensors(float("inf"))))
    await rig.swapper.request(SwapRequest(version=7, digest=bad.digest, epoch=2))
    await rig.swapper.wait()
    assert (rig.swapper.status.phase, rig.swapper.status.transient) == (SwapPhase.FAILED, False)
    assert rig.engine.calls == []
    assert rig.serves(0)


async def test_a_swap_that_fails_because_the_store_is_down_is_transient(rig: PodRig) -> None:
    rig.objects.down = True
    await rig.swap(1)
    assert (rig.swapper.status.phase, rig.swapper.status.transient) == (SwapPhase.FAILED, True)
    assert rig.serves(0)
    rig.objects.down = False
    await rig.swap(1)
    assert rig.serves(1)


async def test_a_request_for_the_served_draft_changes_nothing(rig: PodRig) -> None:
    await rig.swap(0, epoch=2)
    assert rig.engine.calls == []
    await rig.swap(1, epoch=3)
    rig.engine.calls.clear()
    await rig.swap(1, epoch=4)
    assert rig.engine.calls == []
    assert (rig.swapper.status.phase, rig.swapper.status.epoch) == (SwapPhase.IDLE, 4)


async def test_a_repeated_order_of_a_higher_epoch_moves_the_fence_and_the_state_names_it(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new leader repeats the order of the running swap. An order that the former leader sent before must not win.
    The operator tells by the epoch whether a failure belongs to its present roll. The pod's clock may be wrong."""
    store = SlowStore(rig, monkeypatch)
    await rig.swapper.request(rig.swap_request(1, 2))
    await store.wait_until_begun()
    assert (rig.swapper.status.phase, rig.swapper.status.epoch) == (SwapPhase.STAGING, 2)
    await rig.swapper.request(rig.swap_request(1, 4))
    with pytest.raises(SwapRefused, match="older than epoch 4"):
        await rig.swapper.request(rig.swap_request(2, 3))
    store.released.set()
    await asyncio.wait_for(rig.swapper.wait(), 10)
    assert (rig.swapper.status.phase, rig.swapper.status.epoch) == (SwapPhase.IDLE, 4)
    assert rig.serves(1)
    assert rig.engine.calls.count("pause_generation") == 1
    rig.engine.faults = dict.fromkeys(FakeEngine.ADMIN_ROUTES, "gone")
    rig.engine.faults_persist = True
    await rig.swap(2, epoch=5)
    assert (rig.swapper.status.phase, rig.swapper.status.epoch) == (SwapPhase.FAILED, 5)


async def test_an_older_epoch_is_refused_even_by_a_new_agent(rig: PodRig) -> None:
    await rig.swap(1, epoch=5)
    with pytest.raises(SwapRefused, match="older"):
        await rig.swapper.request(rig.swap_request(2, 4))
    rig.swapper = rig.new_swapper()
    await rig.swapper.recover("b1")
    with pytest.raises(SwapRefused, match="older"):
        await rig.swapper.request(rig.swap_request(2, 4))
    await rig.swap(2, epoch=5)
    assert rig.serves(2)


async def test_a_damaged_order_file_blocks_no_order_and_the_next_order_is_the_fence(rig: PodRig) -> None:
    await rig.swap(1, epoch=5)
    rig.folder.swap_request.write_bytes(b'{"version": 1, "epo')
    await rig.swap(0, epoch=6)
    assert rig.serves(0)
    with pytest.raises(SwapRefused, match="older than epoch 6"):
        await rig.swapper.request(rig.swap_request(1, 5))


async def test_an_order_is_on_the_disk_before_its_file_gets_its_name(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(file: int) -> None:
        steps.append("sync")
        sync(file)

    def note_name(part: Path, path: Path) -> None:
        steps.append(path.name)
        replace(part, path)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_name)
    await rig.swapper.request(rig.swap_request(0, 2))
    assert steps == ["sync", "swap.json", "sync"]


async def test_only_one_swap_runs_at_a_time(rig: PodRig) -> None:
    await rig.swapper.request(rig.swap_request(1, 2))
    await rig.swapper.request(rig.swap_request(1, 2))
    with pytest.raises(SwapRefused):
        await rig.swapper.request(rig.swap_request(2, 2))
    await rig.swapper.wait()
    assert rig.serves(1)
    assert rig.engine.calls.count("pause_generation") == 1


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_rollback_ends_a_download_and_the_draft_is_never_loaded(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """A download that does not hear the order, because its last byte has come, must not load its draft either."""
    store = SlowStore(rig, monkeypatch, deaf=deaf)
    await rig.swapper.request(rig.swap_request(1, 2))
    await store.wait_until_begun()
    await rig.swapper.request(rig.swap_request(0, 3))
    assert (rig.swapper.status.phase, rig.swapper.status.version) == (SwapPhase.IDLE, 0)
    store.released.set() if deaf else None
    await asyncio.wait_for(rig.swapper.wait(), 10)
    assert rig.serves(0)
    assert rig.engine.calls == []
    assert rig.drafts.find_staged(1) is None
    with pytest.raises(SwapRefused, match="older"):
        await rig.swapper.request(rig.swap_request(1, 2))


async def test_a_newer_order_for_a_third_version_follows_the_download_that_it_ends(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(rig, monkeypatch)
    await rig.swapper.request(rig.swap_request(1, 2))
    await store.wait_until_begun()
    await rig.swapper.request(rig.swap_request(2, 3))
    store.released.set()
    await asyncio.wait_for(rig.swapper.wait(), 10)
    assert rig.serves(2)
    assert rig.engine.calls.count("pause_generation") == 1
    assert [result for result, _ in rig.results] == ["success"]


async def test_an_order_that_comes_too_late_for_the_download_is_refused(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the pause on a swap is short, and the operator asks again."""
    loading, go_on = asyncio.Event(), asyncio.Event()
    load = rig.swapper.draft_swap.load_or_restore

    async def slowly(draft: DraftFile, fallback: DraftFile) -> float:
        loading.set()
        await go_on.wait()
        return await load(draft, fallback)

    monkeypatch.setattr(rig.swapper.draft_swap, "load_or_restore", slowly)
    await rig.swapper.request(rig.swap_request(1, 2))
    await asyncio.wait_for(loading.wait(), 10)
    with pytest.raises(SwapRefused):
        await rig.swapper.request(rig.swap_request(0, 3))
    go_on.set()
    await rig.swapper.wait()
    assert rig.serves(1)
    await rig.swap(0, epoch=3)
    assert rig.serves(0)


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
async def test_a_new_agent_closes_the_update_that_a_dead_one_left_open(rig: PodRig, calls: int) -> None:
    """The dead agent got through the first ``calls`` of a swap's five."""
    draft = rig.drafts.stage(1, rig.digests[1])
    steps = [
        rig.client.pause_generation,
        rig.client.begin_weight_update,
        lambda: rig.client.update_draft(draft.weights, draft.digest, 1, 2),
        rig.client.end_weight_update,
    ]
    for step in steps[:calls]:
        await step()
    rig.swapper = rig.new_swapper()
    await rig.swapper.recover("b1")
    assert rig.serves(1 if calls >= 3 else 0), "current follows what the engine holds"
    await rig.swap(2)
    assert rig.serves(2)


@pytest.mark.parametrize("fault", ["unloaded", "one rank"])
async def test_a_new_agent_restores_the_draft_of_an_engine_that_only_took_the_version_over(
    rig: PodRig, fault: str
) -> None:
    """Otherwise a restart would start with a draft that the engine never held."""
    rig.engine.faults = {"update_weights_from_tensor": fault}
    draft = rig.drafts.stage(1, rig.digests[1])
    await rig.client.update_draft(draft.weights, draft.digest, 1, 2)
    rig.engine.unpaused_updates.clear()
    assert rig.engine.version == "1"
    rig.swapper = rig.new_swapper()
    await rig.swapper.recover("b1")
    assert rig.serves(0)
    assert rig.engine.digests == [rig.digests[0]] * 2
    await rig.swap(1)
    assert rig.serves(1)


async def test_a_previous_draft_that_the_disk_lost_is_fetched_again(rig: PodRig) -> None:
    await rig.swap(1)
    rig.drafts.make_current(rig.drafts.stage(2, rig.digests[2], keep=()))
    for path in rig.folder.drafts.glob("00000001-*"):
        shutil.rmtree(path)
    await rig.swap(0, epoch=3)
    assert rig.serves(0)


# checksums differ between two engine starts ---------------------------------------------------------------------------


async def test_an_order_is_refused_until_the_draft_of_a_new_start_is_known(rig: PodRig) -> None:
    rig.start_engine("b2")
    with pytest.raises(EngineFault):
        await rig.swapper.request(rig.swap_request(1, 2))
    assert rig.swapper.last_request() is None
    assert await rig.pod.ready()
    await rig.swap(1)
    assert rig.serves(1)


async def test_a_start_during_the_download_ends_the_swap_and_is_no_fault_of_the_draft(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(rig, monkeypatch)
    await rig.swapper.request(rig.swap_request(1, 2))
    await store.wait_until_begun()
    rig.start_engine("b2")
    store.released.set()
    await asyncio.wait_for(rig.swapper.wait(), 10)
    assert (rig.swapper.status.phase, rig.swapper.status.transient) == (SwapPhase.FAILED, True)
    assert "started again" in rig.swapper.status.error
    assert "pause_generation" not in rig.engine.calls
    assert await rig.pod.ready()
    await rig.swap(1)
    assert rig.serves(1)


async def test_a_newer_order_ends_the_download_for_a_former_start_and_fails_until_the_new_starts_draft_is_known(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(rig, monkeypatch)
    await rig.swapper.request(rig.swap_request(1, 2))
    await store.wait_until_begun()
    rig.start_engine("b2")
    await rig.swapper.request(rig.swap_request(2, 3))
    store.released.set()
    await asyncio.wait_for(rig.swapper.wait(), 10)
    assert (rig.swapper.status.phase, rig.swapper.status.transient) == (SwapPhase.FAILED, True)
    assert "pause_generation" not in rig.engine.calls
    assert await rig.pod.ready()
    await rig.swap(2, epoch=3)
    assert rig.serves(2)
