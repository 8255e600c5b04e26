"""An informer that fails for ever is told, so that the process restarts, but not while the API server is away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from kubernetes import client

from aurora_operator.errors import KubernetesError, Unconnected
from aurora_operator.kubernetes_api import POD, WATCHED
from aurora_operator.watch import informers as informers_module
from aurora_operator.watch.api_stream import ApiStream
from aurora_operator.watch.informers import Informers
from tests.unit.operator.watch.informer_rig import FakeStream, informers_of, informing, shorten_waits

BOUND_SECONDS = 0.3
LONG_SECONDS = 3600.0
"""The API server has answered the calls of the Lease for this long."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)
    monkeypatch.setattr(informers_module, "MAX_UNANSWERED_SECONDS", BOUND_SECONDS)


@contextlib.asynccontextmanager
async def synced(stream: FakeStream) -> AsyncIterator[Informers]:
    """Informers that have listed every kind once."""
    async with informing(stream, "team") as (informers, _):
        async with asyncio.timeout(10):
            await informers.wait_until_synced()
        yield informers


@pytest.mark.parametrize(
    "error",
    [
        Unconnected("list pods: ClientConnectorCertificateError"),
        KubernetesError("Unauthorized", 401),
    ],
)
async def test_informers_that_fail_for_long_are_told_until_they_succeed(error: KubernetesError) -> None:
    stream = FakeStream()
    async with synced(stream) as informers:
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
    async with synced(stream) as informers:
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
    async with synced(stream) as informers:
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
    async with synced(FakeStream()) as informers:
        await asyncio.sleep(2 * BOUND_SECONDS)
        assert list(informers.silent(LONG_SECONDS)) == []


async def test_an_informer_that_began_late_has_its_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a namespace that came back waited for the list of its speculators."""
    stream = FakeStream()
    stream.error = Unconnected("list pods: ClientConnectorError")
    informers, _ = informers_of(stream, "team")
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 100)
    informers.start()
    await asyncio.sleep(0.01)
    assert list(informers.silent(LONG_SECONDS)) == []
    await informers.stop()
