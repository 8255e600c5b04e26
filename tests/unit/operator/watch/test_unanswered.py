"""An informer that fails for ever is told, so that the process restarts, but not while the API server is away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from kubernetes import client

from aurora_operator.errors import KubernetesError, Unconnected
from aurora_operator.kubernetes_api import POD, WATCHED, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.watch import informer as module
from aurora_operator.watch import informers as informers_module
from aurora_operator.watch.api_stream import ApiStream, Page, WatchEvent
from aurora_operator.watch.informers import Informers

BOUND_SECONDS = 0.3
LONG_SECONDS = 3600.0
"""The API server has answered the calls of the Lease for this long."""


class FakeStream:
    """An API server whose lists are empty, and whose watches bring a bookmark now and then. ``error`` fails calls."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
        if self.error is not None:
            raise self.error
        return Page((), 9, "")

    async def watch(self, resource: Resource, *_: Any) -> AsyncGenerator[WatchEvent]:
        while True:
            if self.error is not None:
                raise self.error
            yield WatchEvent("BOOKMARK", {"kind": resource.kind, "metadata": {"resourceVersion": "10"}})
            await asyncio.sleep(BOUND_SECONDS / 10)

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(module, "RELIST_SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(module, "RECONNECT_SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(informers_module, "MAX_UNANSWERED_SECONDS", BOUND_SECONDS)


@contextlib.asynccontextmanager
async def informing(stream: FakeStream) -> AsyncIterator[Informers]:
    api: Any = stream
    informers = Informers(api, ClusterCache(resource.kind for resource in WATCHED), ["team"], lambda *_: None)
    informers.start()
    try:
        async with asyncio.timeout(10):
            await informers.wait_until_synced()
        yield informers
    finally:
        await informers.stop()


@pytest.mark.parametrize(
    "error",
    [
        Unconnected("list pods: ClientConnectorCertificateError"),
        KubernetesError("Unauthorized", 401),
    ],
)
async def test_informers_that_fail_for_long_are_told_until_they_succeed(error: KubernetesError) -> None:
    stream = FakeStream()
    async with informing(stream) as informers:
        stream.error = error
        assert list(informers.silent(LONG_SECONDS)) == []
        await asyncio.sleep(2 * BOUND_SECONDS)
        sentences = list(informers.silent(LONG_SECONDS))
        assert len(sentences) == len(WATCHED)
        assert all("got no answer" in sentence for sentence in sentences)
        stream.error = None
        async with asyncio.timeout(10):
            while list(informers.silent(LONG_SECONDS)):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)


async def test_an_api_server_that_is_away_restarts_nobody_and_neither_does_its_return() -> None:
    stream = FakeStream()
    async with informing(stream) as informers:
        stream.error = Unconnected("list pods: ClientConnectorError")
        await asyncio.sleep(2 * BOUND_SECONDS)
        assert list(informers.silent(0.0)) == []
        assert list(informers.silent(BOUND_SECONDS)) == [], "the Lease was answered first"


@pytest.mark.parametrize(
    "error",
    [
        *(KubernetesError("no", status) for status in (403, 404, 429, 500)),
        KubernetesError("watch pods: ClientPayloadError", 0),
        KeyError("metadata"),
    ],
    ids=lambda error: f"{type(error).__name__} {getattr(error, 'status', '')}",
)
async def test_an_api_server_that_answers_with_errors_restarts_nobody(error: Exception) -> None:
    """A new process would get the same, for example in a deleted namespace, or behind a proxy that cuts watches."""
    stream = FakeStream()
    async with informing(stream) as informers:
        stream.error = error
        await asyncio.sleep(2 * BOUND_SECONDS)
        assert list(informers.silent(LONG_SECONDS)) == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"], ids=["no answer", "cut"])
async def test_a_call_that_reached_the_api_server_counts_as_connected(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    stream = ApiStream(configuration)
    try:
        with pytest.raises(KubernetesError) as failed:
            await stream.list_page(POD, "", "", "")
        assert not isinstance(failed.value, Unconnected)
        server.close()
        await server.wait_closed()
        with pytest.raises(Unconnected):
            await stream.list_page(POD, "", "", "")
    finally:
        server.close()
        await stream.close()


async def test_an_informer_at_rest_is_not_told() -> None:
    async with informing(FakeStream()) as informers:
        await asyncio.sleep(2 * BOUND_SECONDS)
        assert list(informers.silent(LONG_SECONDS)) == []


async def test_an_informer_that_began_late_has_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a namespace that came back waited for the list of its speculators."""
    stream = FakeStream()
    stream.error = Unconnected("list pods: ClientConnectorError")
    api: Any = stream
    informers = Informers(api, ClusterCache(resource.kind for resource in WATCHED), ["team"], lambda *_: None)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 100)
    informers.start()
    await asyncio.sleep(0.01)
    assert list(informers.silent(LONG_SECONDS)) == []
    await informers.stop()
