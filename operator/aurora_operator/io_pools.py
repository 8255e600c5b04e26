"""Runs blocking calls in threads, so that a slow API server or store holds up nobody else.

Each store endpoint has a bounded share of the threads for stores. The API server has threads of its own, and each
namespace a bounded share of them (``reconcile_slots``, ``challenge_answers``), because an admission webhook may delay
the calls of one. A call has a total deadline, which includes the wait for a thread and the resolution of host names. An
overdue call is abandoned: its caller goes on. The thread of a store's call counts until it really ends.

An endpoint is *proven* when its last call that had a thread took less than :data:`PROVEN_SECONDS`. All other endpoints
together get at most :data:`UNPROVEN_THREADS`, so that any number of hanging stores leaves threads for the stores that
answer. All these threads are shared fairly between namespaces (:class:`FairThreads`). So the hanging stores of one
namespace leave threads for a new store of another namespace.

Invariant: an endpoint that answers waits only for calls of its own endpoint, and for other proven endpoints. A call
that never had a thread says nothing about its endpoint. Calls that wait for the share of the unproven endpoints go on
when another call proves their endpoint.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
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
ENDPOINT_THREADS = 10
"""Threads for one endpoint. The S3 client keeps 10 connections."""
THREADS_PER_KEPT_ONE = 4
"""A quarter of the threads is kept for namespaces without a thread."""
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
        self.threads, self.unproven = FairThreads(threads), FairThreads(unproven)
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

    The pools belong to one event loop. A process of the operator has one.
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
        self._pools, self._threads = pools, FairThreads(threads)
        self._proven = False
        self._unproven_waits: set[asyncio.Future[bool]] = set()
        """The calls that wait for the share of the unproven endpoints."""

    async def call(self, work: Callable[[], T], *, namespace: str, timeout_seconds: float) -> T:
        """Run ``work`` in a thread. The wait for a free thread counts as well.

        Args:
            namespace: the speculator's, whose share of the threads the call takes.

        Raises :class:`CallAbandoned` at the deadline, and what ``work`` raises.
        """
        return await outside(self._bounded(work, namespace, timeout_seconds))

    async def _bounded(self, work: Callable[[], T], namespace: str, timeout_seconds: float) -> T:
        started: asyncio.Future[T] | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                started = await self._start(work, namespace)
                return await asyncio.shield(started)
        except TimeoutError as error:
            if started is None:
                metrics.STORE_WAITS_ABANDONED.inc()
                text = f"the store was not asked within {timeout_seconds:.0f} s, because too many calls of stores hang"
                raise CallAbandoned(text) from error
            self._set_proven(False)
            metrics.STORE_CALLS_ABANDONED.inc()
            raise CallAbandoned(f"the store gave no complete answer within {timeout_seconds:.0f} s") from error

    async def _start(self, work: Callable[[], T], namespace: str) -> asyncio.Future[T]:
        """Start a thread as soon as this endpoint and this namespace may have one."""
        held = await self._slots(namespace)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        began_seconds = time.monotonic()

        def finish(transfer: Callable[[], None]) -> None:
            self._set_proven(time.monotonic() - began_seconds < PROVEN_SECONDS)
            for threads in held:
                threads.release(namespace)
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
            for threads in held:
                threads.release(namespace)
            raise CallAbandoned("this process cannot start another thread; raise its limit of processes") from error
        return future

    async def _slots(self, namespace: str) -> list[FairThreads]:
        """The threads that a call needs, acquired. The call releases them when its thread ends."""
        held: list[FairThreads] = []
        try:
            await self._threads.acquire(namespace)
            held.append(self._threads)
            if not self._proven and await self._pools.unproven.acquire(namespace, self._unproven_waits):
                held.append(self._pools.unproven)
            await self._pools.threads.acquire(namespace)
            held.append(self._pools.threads)
        except asyncio.CancelledError:
            for threads in held:
                threads.release(namespace)
            raise
        return held

    def _set_proven(self, proven: bool) -> None:
        self._proven = proven
        for wait in self._unproven_waits if proven else ():
            if not wait.done():
                wait.set_result(False)


class FairThreads:
    """A bounded number of threads, with a fair share for each namespace. Must be used in one event loop only.

    A quarter of the threads is kept for namespaces that have none. When threads are short, the waiting namespace that
    has the fewest is next, and namespaces that have equally many are next in rotation.

    Invariants: a namespace that has no thread waits only while at least as many others have one as threads are kept.
    No call waits while its namespace may take a thread. A namespace without calls takes no memory.
    """

    def __init__(self, threads: int) -> None:
        self._free, self._kept = threads, threads // THREADS_PER_KEPT_ONE
        self._taken: Counter[str] = Counter()
        """Threads of each namespace that has any."""
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}
        """By namespace, in rotation: the calls that wait, longest wait first."""

    async def acquire(self, namespace: str, waits: set[asyncio.Future[bool]] | None = None) -> bool:
        """Wait for a thread. It must be given back with :meth:`release`.

        Args:
            waits: contains the call while it waits. Setting its result to False ends the wait without a thread.

        Returns whether the call has a thread now.
        """
        if self._may_take(namespace):
            self._take(namespace)
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(namespace, deque()).append(turn)
        waits = set() if waits is None else waits
        waits.add(turn)
        try:
            taken = await turn
        except asyncio.CancelledError:
            if turn.cancelled() or not turn.result():
                self._give_up(namespace, turn)
            else:  # the thread came at the same moment
                self.release(namespace)
            raise
        finally:
            waits.discard(turn)
        if not taken:
            self._give_up(namespace, turn)
        return taken

    def release(self, namespace: str) -> None:
        """Give a thread back."""
        self._free += 1
        self._taken[namespace] -= 1
        if not self._taken[namespace]:
            del self._taken[namespace]
        while self._waiting:
            following = min(self._waiting, key=self._taken.__getitem__)
            if not self._may_take(following):
                return
            queue = self._waiting.pop(following)
            turn = queue.popleft()
            if queue:
                self._waiting[following] = queue  # the last in rotation
            if not turn.done():
                self._take(following)
                turn.set_result(True)

    def _may_take(self, namespace: str) -> bool:
        return self._free > (self._kept if self._taken[namespace] else 0)

    def _take(self, namespace: str) -> None:
        self._free -= 1
        self._taken[namespace] += 1

    def _give_up(self, namespace: str, turn: asyncio.Future[bool]) -> None:
        queue = self._waiting.get(namespace, deque())
        with suppress(ValueError):  # ``release`` has passed it over already
            queue.remove(turn)
        if not queue:
            self._waiting.pop(namespace, None)
