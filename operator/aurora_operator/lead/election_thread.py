"""Runs the election in a thread and on an event loop of its own.

A start with many speculators keeps the event loop of the reconciles busy for seconds at a time. An election on the same
loop would renew the Lease too late, lose it, and stop the work that made it late.

Invariants: the callbacks run on the caller's event loop, one after the other. The call ends only after the Lease was
released. The election asks the caller's event loop before each renewal whether it turns. So a process whose event loop
hangs loses the Lease. It stops acting when its last renewal runs out. Its loops end when the event loop goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from aurora_operator.lead.heartbeat import Heartbeat

AsyncCallback = Callable[[], Awaitable[None]]


class Elector(Protocol):
    """The part of :class:`~aurora_operator.lead.leadership.LeaderElector` that this module needs."""

    async def run(
        self, on_started: Callable[[], None], on_lost: AsyncCallback, silent_seconds: Callable[[], float]
    ) -> None: ...


async def run_election(elector: Elector, on_started: Callable[[], None], on_lost: AsyncCallback) -> None:
    """Run ``elector`` until it fails, or until this task is cancelled. Raises the error of the elector.

    Args:
        on_started: called on the caller's event loop when this replica has become the leader.
        on_lost: called on the caller's event loop when the leadership ends. The election waits for it.
    """
    caller = asyncio.get_running_loop()
    ended = caller.create_future()
    loop = asyncio.new_event_loop()

    async def lost() -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(on_lost), caller))

    heartbeat = Heartbeat(lambda answer: _call_soon(caller, answer))
    election = elector.run(lambda: _call_soon(caller, on_started), lost, heartbeat.silent_seconds)
    task = loop.create_task(election, name="election")

    def work() -> None:
        try:
            loop.run_until_complete(asyncio.wait({task}))
        finally:
            loop.close()
            _call_soon(caller, lambda: _end(ended, task))

    threading.Thread(target=work, name="election", daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        with contextlib.suppress(RuntimeError):  # the election has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        await ended
        raise


async def _awaited(callback: AsyncCallback) -> None:
    await callback()


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends, and nobody waits
        loop.call_soon_threadsafe(callback)


def _end(ended: asyncio.Future[None], election: asyncio.Task[None]) -> None:
    if not election.cancelled() and (error := election.exception()) is not None:
        ended.set_exception(error)
    else:
        ended.set_result(None)
