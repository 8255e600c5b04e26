"""Runs blocking calls in threads, so that a slow API server or store holds up nobody else.

Each store endpoint has a bounded share of the threads for stores. The API server has threads of its own, and each
namespace a bounded share of them (``reconcile_slots``, ``challenge_answers``), because an admission webhook may delay
the calls of one. A call has a total deadline, which includes the wait for a thread and the resolution of host names. An
overdue call is abandoned: its caller goes on. The thread of a store's call counts until it really ends.

An endpoint is *proven* when its last call took less than :data:`PROVEN_SECONDS`. All other endpoints together get at
most :data:`UNPROVEN_THREADS`, so that any number of hanging stores leaves threads for the stores that answer.

Invariant: an endpoint that answers waits only for calls of its own endpoint, and for other proven endpoints.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from aurora_operator import metrics
from aurora_operator.errors import CallAbandoned, KubernetesError
from aurora_operator.reconcile_slots import api_turn, outside, outside_api
from aurora_store import StoreConfig

P = ParamSpec("P")
T = TypeVar("T")
API_THREADS = 64
"""Enough for five namespaces whose calls hang, and for three if their speculators are challenged as well. Threads start
when they are needed, so few run usually."""
API_CALL_SECONDS = 60.0
"""Total deadline of a call of the API server. The API server ends a request after 60 s itself (--request-timeout)."""
STORE_THREADS = 256
"""Threads for all stores together."""
UNPROVEN_THREADS = 128
"""Threads for all stores together that did not answer in time, or were never asked."""
ENDPOINT_THREADS = 8
"""Threads for one endpoint. The S3 client keeps 10 connections."""
PROVEN_SECONDS = 5.0
"""A read of all records takes about 0.1 s from a store nearby."""


def api_threads() -> ThreadPoolExecutor:
    """The executor for calls of the API server: the event loop's default, which :func:`call_api` uses."""
    return ThreadPoolExecutor(API_THREADS, thread_name_prefix="api")


async def call_api(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call of the API server in one of its threads.

    Raises :class:`KubernetesError` after :data:`API_CALL_SECONDS`, and what ``work`` raises. A call that has not begun
    by then never begins. An abandoned write that has begun may still happen, like a write whose answer is lost. The
    next reconcile observes both.
    """
    return await outside_api(_call_api(partial(work, *args, **kwargs)))


async def _call_api(work: Callable[[], T]) -> T:
    try:
        async with asyncio.timeout(API_CALL_SECONDS) as deadline, api_turn():
            return await asyncio.to_thread(work)
    except TimeoutError as error:
        if not deadline.expired():
            raise
        metrics.API_CALLS_ABANDONED.inc()
        text = f"the API server gave no complete answer within {API_CALL_SECONDS:.0f} s"
        raise KubernetesError(f"{text}; check that it can be reached") from error


class StorePools:
    """The threads for stores. Must be used in one event loop only."""

    def __init__(
        self, *, threads: int = STORE_THREADS, unproven: int = UNPROVEN_THREADS, per_endpoint: int = ENDPOINT_THREADS
    ) -> None:
        self.threads, self.unproven = asyncio.Semaphore(threads), asyncio.Semaphore(unproven)
        self._per_endpoint = per_endpoint
        self._pools: WeakValueDictionary[str, EndpointPool] = WeakValueDictionary()

    def of(self, endpoint: str) -> EndpointPool:
        """The pool of an endpoint. It is freed when its last user and its last call are gone."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools[endpoint] = EndpointPool(self, self._per_endpoint)
        return pool

    def __len__(self) -> int:
        return len(self._pools)


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, StorePools] = WeakKeyDictionary()


def pool_of(store: StoreConfig, pools: StorePools | None = None) -> EndpointPool:
    """The pool for a speculator's store, by default among the pools that all speculators share.

    The pools belong to one event loop, as semaphores do. A process of the operator has one.
    """
    if pools is None:
        loop = asyncio.get_running_loop()
        pools = _SHARED.get(loop)
        if pools is None:
            pools = _SHARED[loop] = StorePools()
    return pools.of(store.endpoint or f"S3 {store.region}")


class EndpointPool:
    """The share of one store endpoint."""

    def __init__(self, pools: StorePools, threads: int) -> None:
        self._pools, self._threads = pools, asyncio.Semaphore(threads)
        self._proven = False

    async def call(self, work: Callable[[], T], *, timeout_seconds: float) -> T:
        """Run ``work`` in a thread. The wait for a free thread counts as well.

        Raises :class:`CallAbandoned` at the deadline, and what ``work`` raises.
        """
        return await outside(self._bounded(work, timeout_seconds))

    async def _bounded(self, work: Callable[[], T], timeout_seconds: float) -> T:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(await self._start(work))
        except TimeoutError as error:
            self._proven = False
            metrics.STORE_CALLS_ABANDONED.inc()
            raise CallAbandoned(f"the store gave no complete answer within {timeout_seconds:.0f} s") from error

    async def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Start a thread as soon as this endpoint may have one."""
        held = await self._slots()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        began_seconds = time.monotonic()

        def finish(transfer: Callable[[], None]) -> None:
            self._proven = time.monotonic() - began_seconds < PROVEN_SECONDS
            for slot in held:
                slot.release()
            if not future.cancelled():
                transfer()

        def run() -> None:
            try:
                transfer = partial(future.set_result, work())
            except Exception as error:  # the caller gets every error
                transfer = partial(future.set_exception, error)
            with suppress(RuntimeError):  # the event loop is closed, so nobody waits any more
                loop.call_soon_threadsafe(finish, transfer)

        try:
            # A daemon thread: a call that hangs does not keep the process from ending.
            threading.Thread(target=run, name="store", daemon=True).start()
        except RuntimeError as error:
            for slot in held:
                slot.release()
            raise CallAbandoned("this process cannot start another thread; raise its limit of processes") from error
        return future

    async def _slots(self) -> list[asyncio.Semaphore]:
        """The slots that a call needs, acquired. The call releases them when its thread ends."""
        held: list[asyncio.Semaphore] = []
        try:
            await _acquire(self._threads, held)
            if not self._proven:
                await _acquire(self._pools.unproven, held)
            await _acquire(self._pools.threads, held)
        except asyncio.CancelledError:
            for slot in held:
                slot.release()
            raise
        return held


async def _acquire(slot: asyncio.Semaphore, held: list[asyncio.Semaphore]) -> None:
    await slot.acquire()
    held.append(slot)
