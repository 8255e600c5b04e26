"""The bench's own client of the API server. It is separate from the operator's client, which is under test.

Invariant: every call has a deadline, and every refusal raises :class:`ApiError` with the server's words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from tests.rig.api_server import ApiServer

Object = dict[str, Any]
CALL_SECONDS = 60.0
WATCH_SECONDS = 7200
"""Longer than a run, so that the server ends no watch meanwhile."""
WATCH_PAUSE_SECONDS = 0.1
APPLY, MERGE_PATCH, STRATEGIC_PATCH = (
    "application/apply-patch+yaml",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


class ApiError(RuntimeError):
    """The API server refused a call."""

    def __init__(self, call: str, status: int, text: str) -> None:
        self.status = status
        super().__init__(f"{call}: HTTP {status}: {text[:500]}")


class ApiClient:
    """Calls and watches as the administrator. Use it as an asynchronous context manager."""

    def __init__(self, server: ApiServer) -> None:
        config = json.loads(server.kubeconfig.read_text())
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._url = server.url
        self._tls = ssl.create_default_context(cafile=str(server.directory / "pki/apiserver.crt"))
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> ApiClient:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=64)
        self._session = aiohttp.ClientSession(self._url, connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, body: Object | None = None, content: str = "application/json") -> Any:
        """The parsed answer. Raises :class:`ApiError`."""
        return await self._send(method, path, None if body is None else json.dumps(body).encode(), content)

    async def create(self, path: str, obj: Object) -> Object:
        """Create ``obj`` in the collection ``path``. Raises :class:`ApiError`."""
        created: Object = await self.call("POST", path, obj)
        return created

    async def apply_yaml(self, path: str, text: str) -> None:
        """Server-side apply of one YAML document at ``path``. Raises :class:`ApiError`."""
        await self._send("PATCH", f"{path}?fieldManager=bench&force=true", text.encode(), APPLY)

    async def _send(self, method: str, path: str, body: bytes | None, content: str) -> Any:
        headers = {"Content-Type": content}
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        async with self._session.request(method, path, data=body, headers=headers, timeout=timeout) as response:
            text = await response.text()
            if response.status >= 300:
                raise ApiError(f"{method} {path}", response.status, text)
            return json.loads(text)

    async def watch(self, path: str, handle: Callable[[str, Object], None], selector: str = "") -> None:
        """Call ``handle`` with the type and the object of every event, existing objects first, until cancelled.

        The API server ends the watch of a client that falls behind. The watch then begins again, with all objects.

        Args:
            selector: a part of the query, already encoded, that selects objects.

        Raises :class:`ApiError` when the API server refuses the watch.
        """
        query = f"{path}?watch=1&timeoutSeconds={WATCH_SECONDS}&{selector}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_SECONDS)
        while True:
            async with self._session.get(query, timeout=timeout, read_bufsize=1 << 22) as response:
                if response.status >= 300:
                    raise ApiError(f"watch {path}", response.status, await response.text())
                with contextlib.suppress(aiohttp.ClientError):
                    async for line in response.content:
                        event = json.loads(line)
                        handle(event["type"], event["object"])
            await asyncio.sleep(WATCH_PAUSE_SECONDS)


async def in_parallel(limit: int, calls: list[Callable[[], Any]]) -> None:
    """Await all ``calls``, at most ``limit`` at a time. The first failure ends the rest."""
    free = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Any]) -> None:
        async with free:
            await call()

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(one(call))
