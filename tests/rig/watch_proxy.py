"""A proxy before an API server that sends an error on its open watches. A real API server does so only when it breaks.

It speaks plain HTTP, so a process behind it needs a kubeconfig with its address.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator

import aiohttp
from aiohttp import web

from tests.rig.api_server import ApiServer, free_ports

ERROR = {"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 500, "message": "etcd is ill"}}
_KEPT_HEADERS = ("Authorization", "Content-Type", "Accept", "User-Agent")


class WatchProxy:
    """Passes every request on to the API server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        (self.port,) = free_ports(1)
        self._watches: dict[web.StreamResponse, str] = {}
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession

    def has_watch(self, resources: str) -> bool:
        """Whether a watch of these resources (plural) is open."""
        return any(path.endswith(f"/{resources}") for path in [*self._watches.values()])

    def fail_watches(self) -> None:
        """Send an ERROR event with code 500 on each open watch."""
        asyncio.run_coroutine_threadsafe(self._fail(), self._loop).result(10)

    async def _fail(self) -> None:
        for watch in [*self._watches]:
            await watch.write(json.dumps(ERROR).encode() + b"\n")

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
        url, body = f"{self._server.url}{request.path_qs}", await request.read() or None
        async with self._session.request(request.method, url, headers=headers, data=body) as answer:
            passed = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await passed.prepare(request)
            if request.query.get("watch") == "true":
                self._watches[passed] = request.path
            try:
                with contextlib.suppress(ConnectionError):  # the client ended the connection
                    async for chunk in answer.content.iter_any():
                        await passed.write(chunk)
            finally:
                self._watches.pop(passed, None)
        return passed

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            application = web.Application(client_max_size=1 << 24)
            application.router.add_route("*", "/{path:.*}", self._pass_on)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", self.port).start()
            started.set()
            await ended.wait()
            await runner.cleanup()


@contextlib.contextmanager
def watch_proxy(server: ApiServer) -> Iterator[WatchProxy]:
    """A proxy to ``server`` until the context ends."""
    proxy, started, ended = WatchProxy(server), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: proxy._loop.run_until_complete(proxy.serve(started, ended)))
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        proxy._loop.close()
