"""Lists and watches the API server without a thread per watch.

The official client brings the address, the credentials and the TLS settings. Its own calls block a thread, and a
blocked thread cannot be cancelled, so lists and watches go over aiohttp.

Invariants: a list ends within :data:`LIST_SECONDS`. No page and no event exceeds its size limit, whatever others store.
A watch on which nothing arrives for ``read_seconds`` ends. The connection of a list or watch that is left ends at once,
or within 30 s if the answer had not begun. Closing ends all connections. Every failure is a :class:`KubernetesError`.
After a failure of TLS the next call reads the certificate authority's file again, because a cluster may rotate its
authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from weakref import WeakSet

import aiohttp
from kubernetes import client
from pydantic_core import from_json

from aurora_operator.errors import Expired, KubernetesError, SilentWatch, TooLarge, Unconnected
from aurora_operator.kubernetes_api import API_CALLS, MAX_OBJECT_BYTES, Object, PageSize, Resource, refusal
from aurora_operator.operator_config import OPERATOR_NAME

log = logging.getLogger(__name__)

_UNCONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientSSLError, ssl.SSLError)
CONNECT_SECONDS = 5.0
LIST_SECONDS = 60.0
READ_SECONDS = 90.0
"""Silence after which a watch counts as dead. The API server sends a bookmark at least every 60 s (KEP-956)."""
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
MAX_ERROR_BYTES = 64 << 10
CLOSE_SECONDS = 1.0
"""How long closing waits until the event loop has dropped its connections."""


@dataclass(frozen=True)
class Page:
    """One page of a list."""

    items: Sequence[Object]
    revision: int
    """The revision that all pages of the list show."""
    next_page: str
    """The token that asks for the next page; empty for the last page."""


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch."""

    type: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: Object


class ApiStream:
    """Lists and watches. Create and close it within a running event loop."""

    def __init__(self, configuration: client.Configuration, *, read_seconds: float = READ_SECONDS) -> None:
        self._configuration = configuration
        self._read_seconds = read_seconds
        self._tls = _tls(configuration)
        self._sockets: WeakSet[socket.socket] = WeakSet()
        # Without a limit: every informer occupies one connection for as long as it lives.
        connector = aiohttp.TCPConnector(limit=0, socket_factory=self._new_socket)
        self._session = aiohttp.ClientSession(connector=connector)

    async def close(self) -> None:
        """End all connections.

        aiohttp closes the connection of a request that was left before its answer. Then TLS waits up to 30 s for the
        other side's farewell, and closing the session does not end that wait. So the sockets are shut down here.
        """
        await self._session.close()
        for each in self._open_sockets():
            with contextlib.suppress(OSError):  # the other side was faster
                each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._open_sockets():  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.01)

    def _new_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        return made

    def _open_sockets(self) -> list[socket.socket]:
        return [each for each in self._sockets if each.fileno() >= 0]

    async def list_page(
        self,
        resource: Resource,
        namespace: str,
        labels: str,
        token: str,
        size: PageSize | None = None,
        *,
        metadata_only: bool = False,
    ) -> Page:
        """One page of a list, by default of the usual size.

        Raises :class:`Expired` when ``token`` is too old, :class:`TooLarge`, :class:`KubernetesError`.
        """
        size = size or PageSize()
        query = {"labelSelector": labels, "limit": str(size.limit), "continue": token}
        API_CALLS.labels("list", resource.plural).inc()
        url, timeout = self._url(resource, namespace, query), aiohttp.ClientTimeout(total=LIST_SECONDS)
        call = f"list {resource.plural}"
        # Not compressed: a small compressed answer may be a very large one.
        headers = self._headers() | {"Accept-Encoding": "identity"}
        if metadata_only:
            headers["Accept"] = METADATA_ONLY
        tls = self._tls
        try:
            async with self._session.get(url, headers=headers, timeout=timeout, ssl=tls) as response:
                await _raise_for_status(call, response)
                try:
                    text = await _body(response.content, call, size.max_bytes)
                finally:
                    _abort(response)
            # No other task runs between here and the caller's next wait, so only one parsed page exists at a time.
            body = from_json(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unreachable(call, error, tls) from error
        metadata = body["metadata"]
        items = [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in body["items"]]
        return Page(items, int(metadata["resourceVersion"]), metadata.get("continue") or "")

    async def watch(
        self, resource: Resource, namespace: str, labels: str, revision: int, seconds: int
    ) -> AsyncGenerator[WatchEvent]:
        """The changes after ``revision``, until the API server ends the watch after ``seconds``.

        Raises :class:`Expired` when the API server has no history since ``revision`` or reports another error in the
        stream, :class:`SilentWatch` when nothing arrives, and :class:`KubernetesError` when the API server refuses the
        watch or cannot be reached.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "labelSelector": labels,
            "resourceVersion": str(revision),
            "timeoutSeconds": str(seconds),
        }
        API_CALLS.labels("watch", resource.plural).inc()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=self._read_seconds)
        url, call = self._url(resource, namespace, query), f"watch {resource.plural}"
        headers, tls = self._headers() | {"Accept-Encoding": "identity"}, self._tls
        try:
            async with self._session.get(url, headers=headers, timeout=timeout, ssl=tls) as response:
                await _raise_for_status(call, response)
                try:
                    async for line in _lines(response.content, call):
                        yield _event(call, line, resource)
                except aiohttp.SocketTimeoutError as error:
                    raise SilentWatch(f"{call}: nothing arrived for {self._read_seconds:.0f} s") from error
                finally:
                    _abort(response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unreachable(call, error, tls) from error

    def _unreachable(self, call: str, error: Exception, tls: ssl.SSLContext) -> KubernetesError:
        """The error of a call over ``tls`` that failed. A failure of TLS replaces that context for later calls."""
        if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)) and tls is self._tls:
            try:
                self._tls = _tls(self._configuration)
            except (OSError, ValueError) as unreadable:  # the file may be half written; the next failure reads it again
                log.warning("cannot read the certificates for the API server: %s", unreadable)
        kind = Unconnected if isinstance(error, _UNCONNECTED) else KubernetesError
        return kind(f"{call}: {type(error).__name__}; check that the API server can be reached")

    def _url(self, resource: Resource, namespace: str, query: dict[str, str]) -> str:
        given = urlencode({key: value for key, value in query.items() if value})
        return f"{self._configuration.host}{resource.path(namespace)}?{given}"

    def _headers(self) -> dict[str, str]:
        # Asks for the token anew, because the token of a pod's ServiceAccount expires within an hour.
        settings: dict[str, dict[str, Any]] = self._configuration.auth_settings()
        token = settings.get("BearerToken", {}).get("value")
        return {"User-Agent": OPERATOR_NAME, "Accept": "application/json"} | ({"Authorization": token} if token else {})


def _tls(configuration: client.Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _raise_for_status(call: str, response: aiohttp.ClientResponse) -> None:
    if response.status >= 300:
        raise refusal(call, response.status, await response.content.read(MAX_ERROR_BYTES))


def _abort(response: aiohttp.ClientResponse) -> None:
    """End the connection of a response that was not read to its end.

    Otherwise TLS waits up to 30 s for the other side's farewell, which a dead connection never brings, and closing the
    session does not end that wait.
    """
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()


async def _body(content: aiohttp.StreamReader, call: str, max_bytes: int) -> bytearray:
    text = bytearray()
    async for chunk in content.iter_any():
        text += chunk
        if len(text) > max_bytes:
            raise TooLarge(f"{call}: a page exceeds {max_bytes} bytes")
    return text


async def _lines(content: aiohttp.StreamReader, call: str) -> AsyncIterator[bytes]:
    """The lines of a stream.

    Raises :class:`Expired` when one exceeds :data:`MAX_OBJECT_BYTES`. The event would come again whenever the watch is
    resumed, and only a list leads past it.
    """
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        lines = list[bytearray]()
        if b"\n" in chunk:
            *lines, rest = rest.split(b"\n")
        for line in (*lines, rest):
            if len(line) > MAX_OBJECT_BYTES:
                raise Expired(f"{call}: an event exceeds {MAX_OBJECT_BYTES} bytes", 410)
        for line in filter(None, lines):
            yield bytes(line)


def _event(call: str, line: bytes, resource: Resource) -> WatchEvent:
    """The event in ``line``. Raises :class:`Expired` for an error that the API server reports in the stream."""
    event = from_json(line)
    if event["type"] == "ERROR":
        raise Expired(f"{call}: {event['object'].get('message', 'the API server ended the watch')}", 410)
    return WatchEvent(event["type"], {"apiVersion": resource.api_version, "kind": resource.kind, **event["object"]})
