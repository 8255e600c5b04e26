"""One informer: keeps one kind of objects in the cache as the API server has them.

The informer lists, and then watches from the list's revision on. A watch that ends is resumed from the last revision
that was seen, so that a disconnect costs no list. The informer lists again when the API server has no history since
that revision (HTTP 410), reports an error in the stream, or refuses the watch :data:`MAX_REFUSALS` times in a row. A
list finds the objects that were deleted meanwhile. The informer also lists again after :data:`MAX_SILENT_WATCHES`
silent watches in a row: the API server accepts a watch from a revision that is ahead of it, for example after etcd was
restored from a backup, and sends nothing until it has caught up. So does the end of a watch, or an event, when the
cache lacked room or was contradicted.

Invariants: the informer never gives up. It waits between attempts, longer after each failure in a row. A list that
finished ends the failures before it, unless no watch lasted since the list before: an API server that refuses every
watch is listed less and less often. A list because the cache lacked room follows a watch that lasted without a backoff,
so a crowded namespace does not delay the changes of the others. A namespace that the API server refuses for
:data:`REFUSED_SECONDS` is marked in the cache until a list succeeds, and holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from aurora_operator.errors import Expired, KubernetesError, SilentWatch, Unconnected
from aurora_operator.kubernetes_api import SPECULATOR, WATCHED, Resource
from aurora_operator.observe.cluster_cache import ClusterCache, ListUpdate, Scope, SpeculatorKey, revision_of
from aurora_operator.watch.api_stream import ApiStream, Page, WatchEvent
from aurora_operator.watch.paged_list import PagedList

log = logging.getLogger(__name__)

MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 30.0
RECONNECT_SPREAD_SECONDS, RELIST_SPREAD_SECONDS = 1.0, 3.0
"""After a cut or a restart of the API server, the informers of all operators reconnect and list spread over these
times."""
MIN_WATCH_SECONDS, MAX_WATCH_SECONDS = 300, 600
"""The API server ends a watch after a time between these, so that the watches of many operators do not end together."""
RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
"""HTTP statuses of a watch that the API server cannot serve now: it starts, or has too much to do."""
MAX_REFUSALS = 5
"""Refusals in a row after which a list starts afresh, whatever their reason is."""
MAX_SILENT_WATCHES = 2
"""One may have been a dead connection."""
REFUSED_STATUSES = frozenset({403, 404})
"""A namespace that was deleted took our Role with it."""
REFUSED_SECONDS = 30.0
UNKNOWN_TOKEN_STATUS = 401


class Wake(Protocol):
    """Wakes the loop of a speculator whose objects changed. An empty name: the namespace itself changed."""

    def __call__(self, namespace: str, name: str) -> None: ...


class Informer:
    """Lists and watches one scope."""

    def __init__(
        self, stream: ApiStream, cache: ClusterCache, resource: Resource, namespace: str, labels: str, wake: Wake
    ) -> None:
        self._stream, self._cache, self._wake = stream, cache, wake
        self._resource, self._labels = resource, labels
        self.scope = Scope(resource.kind, namespace)
        self.synced = asyncio.Event()
        """Set once the first list is in the cache."""
        self._last_turn = self._last_answer = time.monotonic()
        self._failures = self._lists_in_vain = 0
        """Failures in a row, and lists in a row after which no watch lasted."""
        self._silent_watches = 0
        self._refused_since_seconds: float | None = None

    @property
    def silent_seconds(self) -> float:
        """Seconds since the informer last heard from the API server, or last failed to."""
        return time.monotonic() - self._last_turn

    @property
    def unanswered_seconds(self) -> float:
        """Seconds since this process last reached the API server, whatever came of the call.

        A failed call is an answer too, because a new process would get the same one: the informer of a deleted
        namespace gets nothing but refusals, and a proxy may cut every watch without changes. No answers are a
        connection that cannot be opened, a failure of TLS, and a token that the API server does not know. Then this
        process itself may be at fault.
        """
        return time.monotonic() - self._last_answer

    async def run(self) -> None:
        """List and watch until cancelled."""
        self._note_answer()  # the informer may have waited long for its turn to begin
        while True:
            try:
                await self._list()
                await self._watch()
            except Expired as error:
                # Nothing is wrong: the history was compacted, or the API server restarted.
                self._note_answer(error)
                log.info("%s: %s; listing again", self.scope, error)
                await _sleep_up_to(RELIST_SPREAD_SECONDS)
            except KubernetesError as error:
                self._note_answer(error)
                self._follow_refusal(error)
            except Exception:
                self._note_answer()
                # Without this informer the operator would go blind. A list may still lead past the object at fault.
                log.exception("%s: an answer of the API server was not understood; listing again", self.scope)
            await self._back_off()

    async def _list(self) -> None:
        """Bring the cache to the API server's present state, page by page. No page outlives the wait for the next."""
        pages = PagedList(self._stream, self._resource, self.scope.namespace, self._labels)
        update = self._take_page(await pages.next_page(), None)
        while pages.has_more:
            update = self._take_page(await pages.next_page(), update)
        self._wake_all(update.finish())
        self._note_answer()
        self.synced.set()
        self._failures, self._lists_in_vain = self._lists_in_vain, self._lists_in_vain + 1
        self._refused_since_seconds = None
        if self._cache.admit(self.scope):
            log.info("%s: can be read again", self.scope)
            self._wake(self.scope.namespace, "")

    def _take_page(self, page: Page, update: ListUpdate | None) -> ListUpdate:
        """Take over a page; ``update`` is None for the first one."""
        self._heard()
        if update is None:
            update = self._cache.begin_list(self.scope, page.revision)
        self._wake_all(update.add(page.items))
        return update

    async def _watch(self) -> None:
        """Follow the changes. Raises :class:`KubernetesError` once a list is needed."""
        refusals = self._silent_watches = 0
        while True:
            started, revision, failed, refused = time.monotonic(), self._cache.progress(self.scope), False, False
            try:
                await self._watch_once(revision)
                self._note_answer()
            except KubernetesError as error:
                self._note_answer(error)
                self._count_silence(error)
                failed, refused = True, error.status != 0
                if refused and (error.status not in RETRIED_STATUSES or refusals + 1 >= MAX_REFUSALS):
                    raise
                log.info("%s: %s; watching on from revision %d", self.scope, error, revision)
            finally:
                # A shorter watch does not count before a list: one fault in the stream each second would mean a list
                # each second.
                if time.monotonic() - started >= MAX_BACKOFF_SECONDS:
                    self._failures = self._lists_in_vain = 0
            if self._cache.left_out(self.scope):
                raise Expired("the cache had no room for some objects", 410)
            self._check_doubts()
            refusals = refusals + 1 if refused else 0
            if time.monotonic() - started < MIN_BACKOFF_SECONDS:
                await self._back_off()
                continue
            self._heard()
            self._failures = self._lists_in_vain = 0
            if failed:
                await _sleep_up_to(RECONNECT_SPREAD_SECONDS)

    async def _watch_once(self, revision: int) -> None:
        seconds = random.randint(MIN_WATCH_SECONDS, MAX_WATCH_SECONDS)  # noqa: S311 - jitter
        namespace, labels = self.scope.namespace, self._labels
        events = self._stream.watch(self._resource, namespace, labels, revision, seconds)
        async with contextlib.aclosing(events):
            async for event in events:
                self._heard()
                self._note_answer()
                self._silent_watches = 0
                self._wake_all(self._take(event))
                self._check_doubts()

    def _count_silence(self, error: KubernetesError) -> None:
        """Raises :class:`Expired` after too many silent watches in a row."""
        if isinstance(error, SilentWatch):
            self._silent_watches += 1
        if self._silent_watches >= MAX_SILENT_WATCHES:
            raise Expired(f"{self._silent_watches} watches in a row were silent", 410) from error

    def _check_doubts(self) -> None:
        """Raises :class:`Expired` when an answer of the API server contradicts the cache."""
        if self._cache.is_doubted(self.scope):
            raise Expired("the API server's history went back", 410)

    def _take(self, event: WatchEvent) -> set[SpeculatorKey]:
        """Take over one event. Returns the speculators to wake."""
        if event.type == "BOOKMARK":
            self._cache.advance(self.scope, revision_of(event.object))
            return set()
        take: Callable[..., set[SpeculatorKey]] = self._cache.delete if event.type == "DELETED" else self._cache.update
        return take(self.scope, event.object)

    def _follow_refusal(self, error: KubernetesError) -> None:
        """Log a failure. Mark the scope once the API server has refused it for long.

        Refusals of a list in all namespaces are not marked, because nothing can be done without that list.
        """
        log.warning("%s: %s; trying again", self.scope, error)
        if error.status not in REFUSED_STATUSES or not self.scope.namespace:
            return
        now_seconds = time.monotonic()
        if self._refused_since_seconds is None:
            self._refused_since_seconds = now_seconds
        if now_seconds - self._refused_since_seconds < REFUSED_SECONDS or not self._cache.refuse(self.scope):
            return
        if self._resource is SPECULATOR and not self.synced.is_set():
            # No other kind was listed yet. Each of them is, before this namespace counts as readable.
            for resource in WATCHED:
                self._cache.refuse(Scope(resource.kind, self.scope.namespace))
        log.error(
            "%s: refused for %.0f s, so no speculator in this namespace is handled until it can be read; check that the"
            " namespace exists and that the chart's Role and RoleBinding are in it, or remove it from watchNamespaces",
            self.scope,
            now_seconds - self._refused_since_seconds,
        )
        self._wake(self.scope.namespace, "")

    def _wake_all(self, speculators: set[SpeculatorKey]) -> None:
        for namespace, name in speculators:
            self._wake(namespace, name)

    def _heard(self) -> None:
        self._last_turn = time.monotonic()

    def _note_answer(self, error: KubernetesError | None = None) -> None:
        if not isinstance(error, Unconnected) and (error is None or error.status != UNKNOWN_TOKEN_STATUS):
            self._last_answer = time.monotonic()

    async def _back_off(self) -> None:
        """Wait before the next attempt: exponentially longer, up to the maximum, with jitter."""
        self._heard()
        limit = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(random.uniform(limit / 2, limit))  # noqa: S311 - jitter


async def _sleep_up_to(seconds: float) -> None:
    await asyncio.sleep(random.uniform(0, seconds))  # noqa: S311 - jitter
