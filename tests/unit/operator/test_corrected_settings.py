"""Corrected settings of the store end the wait for a read with the former ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from aurora_operator.errors import Conflict
from aurora_store.objects import MAX_RECORD_BYTES
from tests.unit.operator.rest_rig import RestRig


class HangingStore:
    """Lets each read of an object hang until the test ends."""

    def __init__(self, rig: RestRig) -> None:
        self.asked, self.ended = threading.Event(), threading.Event()
        self.hangs, read = True, rig.bucket.get

        def get(key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
            if self.hangs:
                self.asked.set()
                self.ended.wait(60)
            return read(key, sha256, max_bytes=max_bytes)

        rig.bucket.get = get  # type: ignore[method-assign]


@pytest.fixture(name="rig")
def _rig(monkeypatch: pytest.MonkeyPatch) -> RestRig:
    return RestRig(monkeypatch)


@pytest.fixture(name="store")
def _store(rig: RestRig) -> Iterator[HangingStore]:
    store = HangingStore(rig)
    yield store
    store.ended.set()


async def begin(rig: RestRig, store: HangingStore) -> asyncio.Task[float]:
    """A reconcile that waits for the store."""
    store.hangs = False
    await rig.run(600)
    store.hangs = True
    rig.clock.seconds += 600
    reconcile = asyncio.create_task(rig.reconciler.reconcile())
    assert await asyncio.to_thread(store.asked.wait, 60)
    return reconcile


async def test_the_wait_for_a_former_store_ends_at_once_and_the_next_reconcile_reads_the_new_one(
    rig: RestRig, store: HangingStore
) -> None:
    reconcile = await begin(rig, store)
    rig.change_spec(store=rig.spec["store"] | {"region": "eu-central-1"})
    rig.reconciler.end_outdated_wait()
    with pytest.raises(Conflict, match=r"spec\.store changed"):
        await asyncio.wait_for(reconcile, 10)
    store.hangs = False
    await rig.run(120)
    assert rig.reason("StorageReady") == "Ready"


async def test_another_change_of_the_spec_does_not_begin_the_read_anew(rig: RestRig, store: HangingStore) -> None:
    """An autoscaler may change the replicas again and again."""
    reconcile = await begin(rig, store)
    rig.change_spec(serving={"replicas": 1})
    rig.reconciler.end_outdated_wait()
    await asyncio.sleep(0.2)
    assert not reconcile.done()
    store.ended.set()
    await reconcile


async def test_a_reconcile_that_is_cancelled_while_it_waits_is_cancelled(rig: RestRig, store: HangingStore) -> None:
    """The operator stops leading."""
    reconcile = await begin(rig, store)
    reconcile.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reconcile
