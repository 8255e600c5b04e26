"""One replica of an installation acts: the one that holds the Lease.

Why: two replicas that act would do no harm, because every write is fenced (uid, resourceVersion, the channel's epoch).
They would conflict all the time. So the Lease saves work, and no promise depends on it.

Invariants: a call for the Lease has a deadline, and an error of the API server is a failed attempt. A replica that
cannot renew the Lease stops before another one can take it. A replica that stops by itself gives the Lease back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from aurora_operator import metrics
from aurora_operator.errors import NotLeading

log = logging.getLogger(__name__)
T = TypeVar("T")

RENEW_SHARE, RETRY_SHARE, CALL_SHARE = 2 / 3, 2 / 15, 2 / 15
"""Shares of the Lease's duration. A leader gives up after ``RENEW_SHARE`` without a renewal. It tries to renew every
``RETRY_SHARE``, and a call may take ``CALL_SHARE``. A last attempt, with its two calls, ends before the Lease does."""
STOP_SECONDS = 5.0
"""How long the work of a replica that lost the Lease may take to end."""


class _Lease:
    """The client's lock as the election calls it, with a deadline for each call, and with a release."""

    def __init__(self, name: str, namespace: str, identity: str, api: ApiClient, call_seconds: float) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity
        self._lock = LeaseLock(name, namespace, identity, api)
        self._leases = client.CoordinationV1Api(api_client=api)
        self._call_seconds = call_seconds

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """Whether the Lease was read, and its record or the error."""
        return await self._bounded(self._lock.get(name, namespace), lambda error: (False, error))

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        """Not the client's own method, which sends ``pretty=True`` and so fails its own validation (37.0.1)."""
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self._lock.update_lease(election_record))
        return await self._done(self._leases.create_namespaced_lease(namespace, body))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        """Whether the record was written over the one that was read."""
        return await self._bounded(self._lock.update(name, namespace, updated_record), lambda _: False)

    async def release(self) -> None:
        """Remove the holder, so that another replica need not wait until the Lease ends."""
        # Read anew: another replica may have taken the Lease, and the client keeps no resourceVersion that it wrote.
        found, _ = await self.get(self.name, self.namespace)
        lease = self._lock.lease_reference
        if found and lease.spec.holder_identity == self.identity:
            lease.spec.holder_identity = None
            await self._done(self._leases.replace_namespaced_lease(self.name, self.namespace, lease))

    async def _done(self, call: Awaitable[object]) -> bool:
        async def answered() -> bool:
            await call
            return True

        return await self._bounded(answered(), lambda _: False)

    async def _bounded(self, call: Awaitable[T], on_error: Callable[[ApiException], T]) -> T:
        try:
            async with asyncio.timeout(self._call_seconds):
                return await call
        except (ApiException, TimeoutError, aiohttp.ClientError, OSError) as error:
            failed = error if isinstance(error, ApiException) else ApiException(status=0, reason=type(error).__name__)
            log.warning("the Lease %s/%s: HTTP %s %s", self.namespace, self.name, failed.status, failed.reason)
            return on_error(failed)


async def run_while_leading(
    lead: Callable[[], Coroutine[Any, Any, None]],
    api: ApiClient,
    *,
    namespace: str,
    name: str,
    identity: str,
    lease_seconds: float,
) -> None:
    """Wait for the Lease, then run ``lead`` until it ends, and give the Lease back.

    Args:
        identity: names this replica in the Lease.
        lease_seconds: how long the Lease lasts without a renewal.

    Raises :class:`NotLeading` when the Lease was lost. The process must end then.
    """
    lease = _Lease(name, namespace, identity, api, CALL_SHARE * lease_seconds)
    election = LeaderElection(
        Config(
            lease,
            lease_duration=lease_seconds,
            renew_deadline=RENEW_SHARE * lease_seconds,
            retry_period=max(1.0, RETRY_SHARE * lease_seconds),  # the client takes no shorter one
            onstarted_leading=lead,
            onstopped_leading=None,
        )
    )
    await election.acquire()
    log.info("%s leads from now on", identity)
    metrics.LEADING.set(1)
    renewing = asyncio.create_task(election.renew_loop(), name="renew the Lease")
    leading = asyncio.create_task(lead(), name="lead")
    try:
        await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            leading.result()
            return
        raise NotLeading(f"{identity} could not renew the Lease {namespace}/{name} in time")
    finally:
        metrics.LEADING.set(0)
        held = not renewing.done()
        for task in (leading, renewing):
            task.cancel()
        await asyncio.wait({leading, renewing}, timeout=STOP_SECONDS)
        if held and leading.done():  # else the Lease expires, and another replica waits that long
            await lease.release()
