"""An informer resumes, lists again where it must, and never gives up.

The API server here is a fake, for answers that a real one does not give on demand.
``tests/integration/operator/test_informers`` has the real one.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_operator.errors import Expired, KubernetesError, SilentWatch
from aurora_operator.kubernetes_api import POD, Object, Resource
from aurora_operator.observe import cache_budget
from aurora_operator.observe.cluster_cache import ClusterCache, revision_of
from aurora_operator.watch import informer as module
from aurora_operator.watch.api_stream import Page, WatchEvent
from aurora_operator.watch.informer import Informer
from tests.unit.operator.observe.test_cluster_cache import PODS, pod

Step = KubernetesError | WatchEvent | Callable[[], None]


@dataclass
class FakeStream:
    """A fake API server: the pages of each list, and the steps of each watch. A watch without steps stays open."""

    lists: list[list[Page] | KubernetesError]
    watches: list[list[Step]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a watch stays open."""

    async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
        self.calls.append(f"list {token}".strip())
        pages = self.lists[0]
        if isinstance(pages, KubernetesError):
            raise self.lists.pop(0)  # type: ignore[misc]
        page = pages[int(token or 0)]
        if not page.next_page and len(self.lists) > 1:
            self.lists.pop(0)
        return page

    async def watch(
        self, resource: Resource, namespace: str, labels: str, revision: int, seconds: int
    ) -> AsyncGenerator[WatchEvent]:
        self.calls.append(f"watch {revision}")
        if not self.watches:
            self.idle.set()
            await asyncio.Event().wait()
        for step in self.watches.pop(0):
            if isinstance(step, KubernetesError):
                raise step
            if isinstance(step, WatchEvent):
                yield step
            else:
                step()


def page(revision: int, *pods: Object, next_page: str = "") -> Page:
    return Page(pods, revision, next_page)


def bookmark(revision: int) -> WatchEvent:
    return WatchEvent("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(revision)}})


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(module, "RECONNECT_SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(module, "RELIST_SPREAD_SECONDS", 0.01)


async def run(stream: FakeStream) -> tuple[ClusterCache, list[str]]:
    """Run an informer until its watch stays open. Returns the cache and the speculators that were woken."""
    cache, woken = ClusterCache(["Pod"]), list[str]()
    api: Any = stream
    informer = Informer(api, cache, POD, "", "l", lambda namespace, name: woken.append(name))
    task = asyncio.create_task(informer.run())
    async with asyncio.timeout(10):
        await stream.idle.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert informer.synced.is_set()
    return cache, woken


async def test_all_pages_are_in_the_cache_before_the_informer_is_synced() -> None:
    pages = [page(9, pod("a", 3), next_page="1"), page(9, pod("b", 4), next_page="2"), page(9, pod("c", 5))]
    stream = FakeStream([pages])
    cache, _ = await run(stream)
    assert stream.calls == ["list", "list 1", "list 2", "watch 9"]
    assert cache.counts["Pod"] == 3


async def test_an_informer_holds_no_page_while_it_waits_for_the_next_one() -> None:
    made: list[weakref.ref[Page]] = []

    class Stream(FakeStream):
        async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
            await asyncio.sleep(0)
            assert all(each() is None for each in made), "pages of all informers would add up"
            number = len(made)
            fresh = page(9, pod(f"p{number}", number + 1), next_page=str(number + 1) if number < 3 else "")
            made.append(weakref.ref(fresh))
            return fresh

    cache, _ = await run(Stream([]))
    assert cache.counts["Pod"] == len(made) == 4


async def test_a_watch_resumes_from_the_last_event_or_bookmark_without_a_list() -> None:
    away = KubernetesError("watch pods: ClientConnectorError", 0)
    watches: list[list[Step]] = [
        [WatchEvent("ADDED", pod("a", 11)), away],
        [bookmark(20), KubernetesError("watch pods: ServerTimeoutError", 0)],
        [away],
        [away],
        [away],
        [away],
        [away],
        [away],
    ]
    stream = FakeStream([[page(9)]], watches)
    cache, woken = await run(stream)
    assert stream.calls == ["list", "watch 9", "watch 11", *["watch 20"] * 7]
    assert cache.counts["Pod"] == 1
    assert woken == ["chat"]


@pytest.mark.parametrize("gone", [Expired("too old resource version", 410), KubernetesError("forbidden", 403)])
async def test_a_revision_that_is_gone_leads_to_a_list_which_finds_deletions(gone: KubernetesError) -> None:
    stream = FakeStream([[page(9, pod("a", 3), pod("b", 4))], [page(30, pod("b", 25))]], [[bookmark(10), gone]])
    cache, woken = await run(stream)
    assert stream.calls == ["list", "watch 9", "list", "watch 30"]
    assert cache.get("Pod", "team", "a") is None
    assert woken == ["chat", "chat"], "once for the first list, once for the missed deletion"


async def test_a_server_that_keeps_refusing_a_watch_leads_to_a_list() -> None:
    refused: list[Step] = [KubernetesError("the server is currently unable to handle the request", 503)]
    stream = FakeStream([[page(9)], [page(5)]], [list(refused) for _ in range(module.MAX_REFUSALS)])
    cache, _ = await run(stream)
    assert stream.calls == ["list", *["watch 9"] * module.MAX_REFUSALS, "list", "watch 5"]
    assert cache.progress(PODS) == 5


SILENCE = SilentWatch("watch pods: nothing arrived for 90 s")


async def test_two_silent_watches_in_a_row_lead_to_a_list() -> None:
    """The API server sends nothing to a watch from a revision that is ahead of its restored history."""
    stream = FakeStream([[page(9)], [page(5, pod("a", 4))]], [[SILENCE], [SILENCE]])
    cache, _ = await run(stream)
    assert stream.calls == ["list", "watch 9", "watch 9", "list", "watch 5"]
    assert cache.progress(PODS) == 5


async def test_dead_connections_with_bookmarks_in_between_need_no_list() -> None:
    away = KubernetesError("watch pods: ClientConnectorError", 0)
    stream = FakeStream([[page(9)]], [[SILENCE], [away], [bookmark(10), SILENCE], [bookmark(11), SILENCE]])
    await run(stream)
    assert stream.calls == ["list", "watch 9", "watch 9", "watch 9", "watch 10", "watch 11"]


async def test_an_answer_that_contradicts_the_cache_leads_to_a_list() -> None:
    stream = FakeStream([[page(9, pod("a", 8))], [page(5, pod("a", 4))]])
    cache = ClusterCache(["Pod"])
    api: Any = stream

    def read_an_older_pod() -> None:
        cache.compare("Pod", "team", "a")(pod("a", 4))

    stream.watches = [[read_an_older_pod, bookmark(10)]]
    task = asyncio.create_task(Informer(api, cache, POD, "", "", lambda *_: None).run())
    async with asyncio.timeout(10):
        await stream.idle.wait()
    task.cancel()
    assert stream.calls == ["list", "watch 9", "list", "watch 5"]
    assert revision_of(cache.get("Pod", "team", "a") or {}) == 4


async def test_reconnects_and_lists_after_a_cut_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", -1.0)  # each watch counts as one that lasted
    monkeypatch.setattr(module, "RECONNECT_SPREAD_SECONDS", 1.0)
    monkeypatch.setattr(module, "RELIST_SPREAD_SECONDS", 3.0)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    away = KubernetesError("watch pods: ServerDisconnectedError", 0)
    await run(FakeStream([[page(9)], [page(20)]], [[bookmark(10), away], [bookmark(11)], [Expired("gone", 410)]]))
    assert pauses[:2] == [1.0, 3.0], "a watch that the API server ends in time is followed at once"


async def test_a_next_page_that_expired_starts_the_list_again() -> None:
    class Expiring(FakeStream):
        async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
            if token and self.calls.count("list") == 1:
                raise Expired("the provided continue parameter is too old", 410)
            return await super().list_page(resource, namespace, labels, token, size)

    stream = Expiring([[page(9, pod("a", 3), next_page="1"), page(9, pod("b", 4))]])
    cache, _ = await run(stream)
    assert stream.calls == ["list", "list", "list 1", "watch 9"]
    assert cache.counts["Pod"] == 2


async def test_an_event_that_is_not_understood_does_not_end_the_informer() -> None:
    poison = WatchEvent("MODIFIED", {"kind": "Pod", "metadata": {}})
    stream = FakeStream([[page(9)], [page(12, pod("a", 11))]], [[poison]])
    cache, _ = await run(stream)
    assert stream.calls == ["list", "watch 9", "list", "watch 12"]
    assert cache.counts["Pod"] == 1


async def test_failures_are_retried_with_growing_bounded_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = list[float]()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 30.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    failures: list[list[Page] | KubernetesError] = [KubernetesError("list pods: away", 0) for _ in range(12)]
    await run(FakeStream([*failures, [page(9)]]))
    limits = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30]
    assert len(pauses) == len(limits)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))


async def test_a_namespace_that_is_refused_for_long_is_marked_until_it_can_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFUSED_SECONDS", 0.0)
    readable = list[bool]()

    class Stream(FakeStream):
        async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
            readable.append(cache.readable("team"))
            return await super().list_page(resource, namespace, labels, token, size)

    forbidden = KubernetesError("pods is forbidden", 403)
    stream = Stream([forbidden, forbidden, [page(9)]])
    cache, woken = ClusterCache(["Pod"]), list[tuple[str, str]]()
    api: Any = stream
    informer = Informer(api, cache, POD, "team", "", lambda *key: woken.append(key))
    task = asyncio.create_task(informer.run())
    async with asyncio.timeout(10):
        await stream.idle.wait()
    task.cancel()
    assert readable == [True, False, False]
    assert cache.readable("team")
    assert woken == [("team", ""), ("team", "")], "the namespace's loops stop once, and start once"


@pytest.mark.parametrize(("namespace", "status"), [("", 403), ("team", 500), ("team", 0)])
async def test_other_failures_mark_no_namespace(namespace: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_SECONDS", 0.0)
    cache, woken = ClusterCache(["Pod"]), list[tuple[str, str]]()
    api: Any = FakeStream([KubernetesError("no", status), KubernetesError("no", status), [page(9)]])
    task = asyncio.create_task(Informer(api, cache, POD, namespace, "", lambda *key: woken.append(key)).run())
    async with asyncio.timeout(10):
        await api.idle.wait()
    task.cancel()
    assert woken == []


async def test_objects_that_did_not_fit_are_listed_again_at_the_end_of_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_budget, "NAMESPACE_BYTES", 1500)
    many = [pod(f"p{number}", 3) for number in range(10)]
    lists: list[list[Page] | KubernetesError] = [[page(9, *many)], [page(30, many[-1])], [page(31, many[-1])]]
    stream = FakeStream(lists, [[bookmark(10)], [bookmark(30)]])
    cache, _ = await run(stream)
    assert stream.calls == ["list", "watch 9", "list", "watch 30", "list", "watch 31"]
    assert cache.get("Pod", "team", "p9") is not None


@pytest.fixture(name="pauses")
def _pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The longest pauses that the informer could have made, with the usual limits. No pause takes time."""
    made = list[float]()

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 30.0)
    monkeypatch.setattr(module, "RELIST_SPREAD_SECONDS", 3.0)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return made


async def test_a_crowded_namespace_does_not_make_the_pauses_longer(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All namespaces wait during a pause, because one informer watches them all."""
    now_seconds = 0.0

    def last() -> None:
        nonlocal now_seconds
        now_seconds += module.MIN_WATCH_SECONDS

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_seconds))
    monkeypatch.setattr(cache_budget, "NAMESPACE_BYTES", 1500)
    many = [pod(f"p{number}", 3) for number in range(10)]
    await run(FakeStream([[page(9, *many)]], [[last] for _ in range(8)]))
    assert pauses == [3.0, 0.5] * 8, "a list each five minutes, and none without a pause"


async def test_a_finished_list_ends_the_failures_before_it(pauses: list[float]) -> None:
    away = [KubernetesError("list pods: ClientConnectorError", 0) for _ in range(4)]
    starting: list[Step] = [KubernetesError("the server is currently unable to handle the request", 503)]
    await run(FakeStream([*away, [page(9)]], [starting]))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 0.5]


async def test_an_api_server_that_refuses_every_watch_is_listed_less_and_less_often(pauses: list[float]) -> None:
    refused: list[Step] = [KubernetesError("pods is forbidden", 403)]
    await run(FakeStream([[page(9)]], [list(refused) for _ in range(8)]))
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


async def test_an_informer_that_hears_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    api: Any = FakeStream([[page(9)]])
    informer = Informer(api, ClusterCache(["Pod"]), POD, "", "", lambda namespace, name: None)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 301)
    assert informer.silent_seconds > 300
    task = asyncio.create_task(informer.run())
    await api.idle.wait()
    assert informer.silent_seconds < 1
    task.cancel()
