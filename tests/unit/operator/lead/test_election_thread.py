"""The election goes on while the event loop of the reconciles is busy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from aurora_operator.lead.election_thread import run_election


class Recorder:
    """An elector that leads at once and counts its renewals. Records what happened, in order."""

    def __init__(self, renewals: int | None = None, error: Exception | None = None) -> None:
        self.renewals, self._most, self._error = 0, renewals, error
        self.happened: list[str] = []

    async def run(
        self,
        on_started: Callable[[], None],
        on_lost: Callable[[], Awaitable[None]],
        silent_seconds: Callable[[], float],
    ) -> None:
        try:
            on_started()
            try:
                while self._most is None or self.renewals < self._most:
                    self.renewals += 1
                    await asyncio.sleep(0.01)
                if self._error is not None:
                    raise self._error
            finally:
                await on_lost()
        finally:
            self.happened.append("released")


def callbacks(elector: Recorder) -> tuple[Callable[[], None], Callable[[], Awaitable[None]]]:
    thread = threading.current_thread()

    def started() -> None:
        assert threading.current_thread() is thread
        elector.happened.append("started")

    async def lost() -> None:
        assert threading.current_thread() is thread
        elector.happened.append("lost")

    return started, lost


async def test_a_busy_event_loop_delays_no_renewal() -> None:
    elector = Recorder()
    task = asyncio.create_task(run_election(elector, *callbacks(elector)))
    await asyncio.sleep(0.1)
    before = elector.renewals
    time.sleep(0.5)  # noqa: ASYNC251 - the busy event loop
    assert elector.renewals >= before + 5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_election_ends_after_its_release() -> None:
    elector = Recorder()
    task = asyncio.create_task(run_election(elector, *callbacks(elector)))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert elector.happened == ["started", "lost", "released"]


async def test_the_error_of_an_election_reaches_the_caller() -> None:
    elector = Recorder(renewals=3, error=ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await run_election(elector, *callbacks(elector))
    assert elector.happened == ["started", "lost", "released"]


async def test_an_election_that_is_cancelled_before_it_leads_releases_too() -> None:
    class Waiting:
        released = False

        async def run(self, *_: object) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                self.released = True

    elector = Waiting()
    task = asyncio.create_task(run_election(elector, lambda: None, callbacks(Recorder())[1]))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert elector.released
