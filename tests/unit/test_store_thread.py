"""A call of the store in a thread returns, raises, and ends soon after nobody wants its answer any more."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from aurora_runtime.store_thread import call_in_thread, finish_in_thread
from aurora_store.deadline import is_interrupted
from aurora_store.errors import StoreError, StoreInterrupted


class SlowCall:
    """A call that only an interruption ends."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        give_up = time.monotonic() + 30
        while not is_interrupted():
            assert time.monotonic() < give_up
            time.sleep(0.01)
        self.ended.set()
        raise StoreInterrupted("nobody waits")


async def test_a_call_returns_its_result_or_raises_its_error() -> None:
    def fail() -> None:
        raise StoreError("the store is down")

    assert await call_in_thread(lambda: 7) == 7
    with pytest.raises(StoreError, match="is down"):
        await call_in_thread(fail)
    assert not await call_in_thread(is_interrupted)


async def test_a_cancelled_call_ends_its_thread() -> None:
    slow = SlowCall()
    call = asyncio.create_task(call_in_thread(slow))
    assert await asyncio.to_thread(slow.began.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(slow.ended.wait, 10)


async def test_a_call_that_is_given_up_raises_what_the_store_raises() -> None:
    slow = SlowCall()
    with pytest.raises(StoreInterrupted):
        await call_in_thread(slow, slow.began.is_set)


async def test_a_cancelled_caller_waits_for_the_end_of_a_call_that_must_finish() -> None:
    """Otherwise a caller would release its lock while its write goes on, and a later write might be overwritten."""
    began, go_on = threading.Event(), threading.Event()

    def write() -> None:
        began.set()
        assert go_on.wait(10)

    call = asyncio.create_task(finish_in_thread(write))
    assert await asyncio.to_thread(began.wait, 10)
    call.cancel()
    await asyncio.sleep(0.1)
    assert not call.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
