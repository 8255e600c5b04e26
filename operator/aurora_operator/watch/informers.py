"""All informers of this process: one for each kind, in all namespaces or in each watched one.

Invariants: the children are listed after the speculators, because each speculator makes room in the cache for its
children. A watched namespace that the API server refuses does not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from aurora_operator.children.metadata import COMMON_LABELS, SHARD_LABEL
from aurora_operator.kubernetes_api import NAMESPACE, SPECULATOR, WATCHED
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.watch.api_stream import ApiStream
from aurora_operator.watch.informer import Informer, Wake

MAX_SILENT_SECONDS = 300.0
"""An informer hears something, or fails, at least every 120 s: a watch's silence and a pause each have a limit."""
MAX_UNANSWERED_SECONDS = 600.0
"""A connected informer gets a bookmark every 60 s. It waits longest after two silent watches (180 s) and for the list
that follows, which cannot take much more than the 5 min after which the API server lets its pages expire."""
SYNC_POLL_SECONDS = 0.1


class Informers:
    """Starts and stops the informers. Must be created within a running event loop.

    Args:
        namespaces: the watched namespaces. Empty: all.
        shard: deliver the namespaces of this shard too, as an object each. Empty: deliver no namespaces.
    """

    def __init__(
        self, stream: ApiStream, cache: ClusterCache, namespaces: Sequence[str], wake: Wake, shard: str = ""
    ) -> None:
        children = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
        self._informers = [
            Informer(stream, cache, resource, namespace, "" if resource is SPECULATOR else children, wake)
            for namespace in namespaces or [""]
            for resource in WATCHED
        ]
        if shard:
            self._informers.append(Informer(stream, cache, NAMESPACE, "", f"{SHARD_LABEL}={shard}", wake))
        self._stream, self._cache = stream, cache
        self._speculators = {i.scope.namespace: i for i in self._informers if i.scope.kind == SPECULATOR.kind}
        self._started: list[Informer] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(i), name=f"informer of {i.scope}") for i in self._informers]

    async def _run(self, informer: Informer) -> None:
        speculators = self._speculators[informer.scope.namespace]
        if informer is not speculators:
            await speculators.synced.wait()
        self._started.append(informer)
        await informer.run()

    async def wait_until_synced(self) -> None:
        """Return once :attr:`synced` is true."""
        while not self.synced:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(SYNC_POLL_SECONDS)

    @property
    def synced(self) -> bool:
        """Whether the cache holds every informer's first list, except in namespaces that the API server refuses.

        At least one namespace must be complete: without any, this replica could do nothing.
        """
        incomplete = {i.scope.namespace for i in self._informers if not i.synced.is_set()}
        return len(incomplete) < len(self._speculators) and not any(map(self._cache.readable, incomplete))

    def silent(self, lease_answered_seconds: float) -> Iterator[str]:
        """A sentence about each informer that hears nothing, although even a dead connection would be noticed.

        An informer that cannot connect counts too, but only while the API server answers the calls of the Lease.
        Then this process is at fault, and a restart may help. While the API server is away, a restart would only
        empty the cache. A new process does not compete for the Lease before its first lists, so it waits for them and
        does not restart again.

        Args:
            lease_answered_seconds: for how long the API server has answered the calls of the Lease.
        """
        for informer in self._started:
            if informer.silent_seconds > MAX_SILENT_SECONDS:
                yield f"the informer of {informer.scope} is silent for {informer.silent_seconds:.0f} s"
                continue
            unanswered_seconds = min(informer.unanswered_seconds, lease_answered_seconds)
            if unanswered_seconds > MAX_UNANSWERED_SECONDS:
                yield (
                    f"the informer of {informer.scope} got no answer for {unanswered_seconds:.0f} s, although the API"
                    " server answers the calls of the Lease"
                )

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stream.close()
