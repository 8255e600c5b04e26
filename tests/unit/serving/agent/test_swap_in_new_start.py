"""A swap loads its draft only in an engine start whose draft is known. Checksums differ between two starts."""

from __future__ import annotations

import asyncio

import pytest

from aurora_protocol.agent_api import SwapPhase
from aurora_runtime.errors import EngineFault
from tests.unit.serving.agent.rigs import PodRig, SlowStore


@pytest.fixture
def rig(pod_rig: PodRig) -> PodRig:
    return pod_rig


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
