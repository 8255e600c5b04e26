"""Answers of the API server and texts of its refusals are bounded. The server here is a fake that speaks HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from kubernetes import client

from aurora_operator import kubernetes_api
from aurora_operator.errors import Conflict, Expired, KubernetesError, NotFound, SilentWatch, TooLarge
from aurora_operator.kubernetes_api import POD, HttpKubernetesApi, refusal
from aurora_operator.watch import api_stream
from aurora_operator.watch.api_stream import ApiStream

LIMIT = 10_000


class _Pods(BaseHTTPRequestHandler):
    """Lists pods of the sizes that ``server.sizes`` holds, in pages. Gets one pod of the first size."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlparse(self.path)
        sizes: list[int] = self.server.sizes  # type: ignore[attr-defined]
        if not url.path.endswith("/pods"):
            self._send(_pod(0, sizes[0]))
            return
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if "watch" in query:
            self._send_events()
            return
        first, limit = int(query.get("continue", 0)), int(query["limit"])
        self.server.limits.append(limit)  # type: ignore[attr-defined]
        last = min(first + limit, len(sizes))
        metadata = {"resourceVersion": "9"} | ({"continue": str(last)} if last < len(sizes) else {})
        items = [_pod(number, sizes[number]) for number in range(first, last)]
        self._send({"metadata": metadata, "items": items})

    def _send_events(self) -> None:
        """An event of each size, each in a line, and then nothing."""
        self.send_response(200)
        self.end_headers()
        for number, size in enumerate(self.server.sizes):  # type: ignore[attr-defined]
            self.wfile.write(json.dumps({"type": "ADDED", "object": _pod(number, size)}).encode() + b"\n")
        self.server.ended.wait(10)  # type: ignore[attr-defined]

    def _send(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the overridden method
        """Print nothing."""


def _pod(number: int, size: int) -> dict[str, object]:
    return {"metadata": {"name": f"p{number}", "annotations": {"x": "x" * size}}}


@pytest.fixture(name="server")
def _server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setattr(kubernetes_api, "MAX_PAGE_BYTES", LIMIT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pods)
    server.daemon_threads = True
    server.limits, server.ended = [], threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()
        server.server_close()


def configuration(server: ThreadingHTTPServer) -> client.Configuration:
    made = client.Configuration()
    made.host = f"http://127.0.0.1:{server.server_port}"
    return made


def names(server: ThreadingHTTPServer, sizes: list[int]) -> list[str]:
    server.sizes = sizes  # type: ignore[attr-defined]
    api = HttpKubernetesApi(client.ApiClient(configuration(server)))
    return [pod["metadata"]["name"] for pod in api.list(POD, "team", "a=b")]


def test_a_list_comes_in_pages_that_are_asked_for_again_when_they_are_too_large(server: ThreadingHTTPServer) -> None:
    assert names(server, [10] * 250) == [f"p{number}" for number in range(250)]
    assert server.limits == [100, 100, 100]  # type: ignore[attr-defined]
    assert names(server, [3000] * 20) == [f"p{number}" for number in range(20)]
    assert max(server.limits[3:]) == 100  # type: ignore[attr-defined]
    assert names(server, [2 * LIMIT, 10]) == ["p0", "p1"], "one object may have more than a page"


def test_an_object_beyond_every_limit_is_not_read(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "MAX_OBJECT_BYTES", LIMIT)
    with pytest.raises(TooLarge, match="exceeds 10000 bytes"):
        names(server, [2 * LIMIT])


def test_a_get_has_a_limit(server: ThreadingHTTPServer) -> None:
    server.sizes = [17 << 20]  # type: ignore[attr-defined]
    api = HttpKubernetesApi(client.ApiClient(configuration(server)))
    with pytest.raises(TooLarge, match="exceeds 16777216 bytes"):
        api.get(POD, "team", "p0")
    server.sizes = [10]  # type: ignore[attr-defined]
    assert api.get(POD, "team", "p0")["metadata"]["name"] == "p0"


async def test_a_page_of_an_informer_has_a_limit(server: ThreadingHTTPServer) -> None:
    stream = ApiStream(configuration(server))
    server.sizes = [3000] * 20  # type: ignore[attr-defined]
    with pytest.raises(TooLarge, match="exceeds 10000 bytes"):
        await stream.list_page(POD, "team", "", "")
    server.sizes = [10] * 20  # type: ignore[attr-defined]
    assert len((await stream.list_page(POD, "team", "", "")).items) == 20
    await stream.close()


@pytest.mark.parametrize(("sizes", "error"), [([10, 10], SilentWatch), ([10, 2 * LIMIT], Expired)])
async def test_a_watch_tells_silence_and_an_event_that_is_too_large_from_an_api_server_that_is_away(
    server: ThreadingHTTPServer, sizes: list[int], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_stream, "MAX_OBJECT_BYTES", LIMIT)
    server.sizes = sizes  # type: ignore[attr-defined]
    stream = ApiStream(configuration(server), read_seconds=0.5)

    async def watch() -> None:
        async for _ in stream.watch(POD, "team", "", 9, 300):
            pass

    with pytest.raises(error) as raised:
        await watch()
    assert type(raised.value) is error
    await stream.close()


@pytest.mark.parametrize(("status", "kind"), [(403, KubernetesError), (404, NotFound), (409, Conflict), (410, Expired)])
def test_the_text_of_a_refusal_is_bounded_and_on_one_line(status: int, kind: type[KubernetesError]) -> None:
    """A webhook may answer with any text, and each retry logs it."""
    error = refusal("POST jobs", status, json.dumps({"message": "denied\n" + "no! " * 20_000}).encode())
    assert type(error) is kind
    assert error.status == status
    assert str(error).startswith("denied no! no!")
    assert len(str(error)) == 300


def test_a_refusal_without_a_text_names_the_call() -> None:
    assert str(refusal("POST jobs", 500, b"<html>")) == "POST jobs: HTTP 500"
