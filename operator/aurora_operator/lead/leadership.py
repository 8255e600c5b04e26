"""Runs the election of the one replica that acts (see ``election``). The other replicas wait.

Invariants:

- A leader stops acting before a standby may take the Lease. It checks the time before every act
  (:meth:`LeaderElector.ensure_leading`), so a leader that was frozen finds its leadership expired when it goes on.
- A call that was under way when the leader froze may arrive late all the same. The fences refuse it: a child and the
  status carry their resourceVersion, a channel record is created once, and agents refuse an older epoch.
- A clean stop releases the Lease only after the API server's writes have ended. A write that hangs lets the Lease
  expire instead.
- A leader whose event loop hangs renews no more, so a standby takes over. The leader stops acting like one that was
  frozen: it finds its leadership expired when its loop goes on.
- No call delays a renewal: the Lease's calls have threads and connections of their own, and a deadline.

The client library's ``kubernetes.leaderelection`` keeps none of these invariants. It measures by the clock of the day,
its calls have no timeout, an unreachable API server ends it with an exception, and it never releases its Lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol

from aurora_operator import metrics
from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.kubernetes_api import LEASE, Object, Resource
from aurora_operator.lead.election import MAX_HANG_SECONDS, Election, LeaseTiming
from aurora_operator.lead.writes_under_way import WritesUnderWay
from aurora_operator.operator_config import OperatorConfig

log = logging.getLogger(__name__)

LEASE_TIMEOUT_SECONDS = (2.0, 3.0)
"""Timeouts of connecting and of reading, for the Lease's calls: a broken connection must fail before the Lease does."""
MAX_SILENT_SECONDS = 300.0
"""The election looks at the Lease much more often, and each look has a deadline."""
_CALL_THREADS = 2
"""The second thread serves while a call in the first is overdue."""


def boot_seconds() -> float:
    """Seconds since boot. Unlike ``time.monotonic``, they include the time in which the machine was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _never_silent() -> float:
    return 0.0


class LeaseApi(Protocol):
    """The calls that an election needs. All of them block."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object: ...

    def create(self, obj: Object) -> Object: ...

    def replace(self, obj: Object) -> Object: ...


class LeaderElector:
    """This replica's part in the election.

    Args:
        api: a client of its own, with :data:`LEASE_TIMEOUT_SECONDS`.
        clock: seconds that go on while this process is frozen.
        max_hang_seconds: how long the event loop of the reconciles may hang before this replica renews no more.
    """

    def __init__(
        self,
        api: LeaseApi,
        config: OperatorConfig,
        clock: Callable[[], float] = boot_seconds,
        max_hang_seconds: float = MAX_HANG_SECONDS,
    ) -> None:
        self._api, self._clock = api, clock
        self._namespace, self._name = config.operator_namespace, config.lease_name
        identity = f"{config.pod_name or socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self._election = Election(identity, LeaseTiming(config.lease_seconds, max_hang_seconds))
        self._silent_seconds = _never_silent
        self._threads = ThreadPoolExecutor(_CALL_THREADS, thread_name_prefix="lease")
        self._writes = WritesUnderWay()
        self._failure = ""
        self._other_holder = ""
        self._last_look_seconds: float | None = None
        self._answers_seconds: tuple[float, float] | None = None
        """When the first and the last attempt of those ended that the API server has answered without a failure."""

    @property
    def leading(self) -> bool:
        """Whether this replica may act at this moment."""
        return self._election.leads(self._clock())

    @property
    def answered_seconds(self) -> float:
        """For how long the API server has answered all calls of the Lease. Any thread may ask."""
        answers_seconds = self._answers_seconds
        return 0.0 if answers_seconds is None else answers_seconds[1] - answers_seconds[0]

    def silent(self) -> Iterator[str]:
        """A sentence when the election does not turn, for example because a loop does not end. Any thread may call."""
        last_seconds = self._last_look_seconds
        if last_seconds is not None and (silent_seconds := self._clock() - last_seconds) > MAX_SILENT_SECONDS:
            yield f"the election has not looked at the Lease for {silent_seconds:.0f} s"

    def ensure_leading(self) -> None:
        """Raises :class:`NotLeading` unless this replica may act at this moment. Threads may call this."""
        if not self.leading:
            raise NotLeading(f"this replica does not hold the Lease {self._namespace}/{self._name}, so it does not act")

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Around a write, in its thread. A release of the Lease waits for its end. Raises :class:`NotLeading`."""
        with self._writes.one():
            self.ensure_leading()
            yield

    async def run(
        self,
        on_started: Callable[[], None],
        on_lost: Callable[[], Awaitable[None]],
        silent_seconds: Callable[[], float] = _never_silent,
    ) -> None:
        """Compete for the Lease, and lead while it is held, until this task is cancelled. Then release the Lease.

        Args:
            on_started: called when this replica has become the leader. Must not block.
            on_lost: called when the leadership ends, also at a cancellation. The next ``on_started`` comes after it.
            silent_seconds: how long the event loop of the reconciles has not come to a callback. Default: never.
        """
        self._silent_seconds = silent_seconds
        replica = f"{self._election.identity}, Lease {self._namespace}/{self._name}"
        try:
            while True:
                await self._attempt_while(leading=False)
                log.info("%s: this replica leads", replica)
                metrics.LEADING.set(1)
                try:
                    on_started()
                    await self._attempt_while(leading=True)
                    log.warning("%s: this replica lost the Lease and stops acting", replica)
                finally:
                    metrics.LEADING.set(0)
                    await on_lost()
        finally:
            await self._release()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _attempt_while(self, *, leading: bool) -> None:
        """Look for the Lease and take it (or renew it) until this replica begins (or ceases) to lead."""
        if leading:
            await self._sleep()
        while self.leading is leading:
            await self._attempt()
            if self.leading is leading:
                await self._sleep()

    async def _sleep(self) -> None:
        pause_seconds = self._election.pause_seconds(self._clock())
        if self._failure:  # a leader has little time left
            pause_seconds = min(pause_seconds, self._election.timing.retry_seconds / 4)
        await asyncio.sleep(pause_seconds)

    async def _attempt(self) -> None:
        """One attempt to take or to renew the Lease, within the time that is left."""
        timing, now_seconds = self._election.timing, self._clock()
        self._last_look_seconds = now_seconds
        left_seconds = self._election.leads_until_seconds - now_seconds
        hung, self._election = self._election.hangs, self._election.after_question(self._silent_seconds())
        if self._election.hangs:
            limit_seconds, self._answers_seconds = timing.max_hang_seconds, None
            self._report(f"the event loop has hung for {limit_seconds:g} s, so this replica neither takes nor renews")
            return
        if hung:
            log.info("%s: the event loop goes on", self._election.identity)
        try:
            async with asyncio.timeout(left_seconds if left_seconds > 0 else timing.renew_deadline_seconds):
                if left_seconds <= 0:
                    await self._look()
                if self._election.may_take(self._clock()) and not await self._take():
                    await self._look()
                    # The answer to an earlier write of our own was lost: renew at once.
                    if self._election.holds_lease:
                        await self._take()
        except (KubernetesError, TimeoutError) as error:
            self._report(f"cannot read or write the Lease: {_text(error)}")
            self._answers_seconds = None
        else:
            self._report("")
            self._note_answer()

    def _note_answer(self) -> None:
        """An attempt was answered. A long pause before it, such as a frozen process, does not count as answered."""
        now_seconds = self._clock()
        first, last = self._answers_seconds or (now_seconds, now_seconds)
        if now_seconds - last > self._election.timing.lease_seconds:
            first = now_seconds
        self._answers_seconds = (first, now_seconds)

    async def _look(self) -> None:
        try:
            lease: Object | None = await self._call(self._api.get, LEASE, self._namespace, self._name)
        except NotFound:
            lease = None
        self._election = self._election.after_look(lease, self._clock())
        sighting = self._election.sighting
        other = sighting.holder if sighting is not None and not self._election.holds_lease else ""
        if other and other != self._other_holder:
            log.info("%s: this replica is a standby of %s", self._election.identity, other)
        self._other_holder = other

    async def _take(self) -> bool:
        """Write this replica into the Lease. False when the Lease is not the one that was seen."""
        sent_seconds = self._clock()
        body = self._election.taken_lease(self._name, self._namespace, datetime.now(UTC))
        try:
            call = self._api.create if self._election.sighting is None else self._api.replace
            lease = await self._call(call, body)
        except (Conflict, NotFound):
            return False
        self._election = self._election.after_write(lease, sent_seconds, self._clock())
        return True

    async def _release(self) -> None:
        """Give the Lease back once no write is under way, so that another replica leads at once.

        After a failure the Lease expires instead.
        """
        left_seconds = max(0.0, self._election.leads_until_seconds - self._clock())
        self._election = self._election.stopped()  # no write begins from here on
        lease = self._election.released_lease(datetime.now(UTC))
        if lease is None:
            return
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._threads, self._writes.wait_until_none, left_seconds):
            self._report("a write of this replica is still under way, so the Lease is left to expire")
            return
        try:
            async with asyncio.timeout(self._election.timing.retry_seconds):
                await self._call(self._api.replace, lease)
        except (KubernetesError, TimeoutError) as error:
            self._report(f"cannot release the Lease: {_text(error)}")

    async def _call(self, call: Callable[..., Object], *arguments: Any) -> Object:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _report(self, failure: str) -> None:
        """Log a failure once, until an attempt succeeds (no ``failure``) or another failure comes."""
        if failure and failure != self._failure:
            log.warning("%s, Lease %s/%s: %s", self._election.identity, self._namespace, self._name, failure)
        self._failure = failure


def _text(error: KubernetesError | TimeoutError) -> str:
    """The error's text for the log. Counts a call that was abandoned at its deadline."""
    if isinstance(error, KubernetesError):
        return str(error)
    metrics.API_CALLS_ABANDONED.inc()
    return "the API server did not answer in time"
