"""A proxy before the S3 server that counts the operator's requests.

The proxy passes bytes on unchanged, the Host header included, so signatures stay valid. The seeds and the trainer
stand-in do not use the proxy, so it sees the operator alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

CHUNK_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 16


class StoreProxy:
    """Counts requests. Runs on the loop of :meth:`start`."""

    def __init__(self, upstream: str) -> None:
        """``upstream``: the endpoint of the S3 server, as an http URL."""
        parts = urlsplit(upstream)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        self._server: asyncio.Server
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.calls = 0
        self.endpoint = ""
        """The proxy's own URL, once it is started."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_HEADER_BYTES)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close every connection, and wait until nothing runs any more."""
        self._server.close()
        for writer in self._connections.values():
            writer.close()
        await asyncio.gather(*self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            upstream_reader, upstream = await asyncio.open_connection(self._host, self._port)
            answers = asyncio.create_task(_copy(upstream_reader, writer))
            try:
                while True:
                    header = await reader.readuntil(b"\r\n\r\n")
                    self.calls += 1
                    upstream.write(header)
                    await _copy_exactly(reader, upstream, content_length(header))
            finally:
                answers.cancel()
                await asyncio.gather(answers, _closed(upstream), _closed(writer), return_exceptions=True)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def _copy_exactly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    while count:
        data = await reader.read(min(count, CHUNK_BYTES))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        writer.write(data)
        await writer.drain()
        count -= len(data)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.close()


def content_length(header: bytes) -> int:
    """The length of the body in bytes. Raises ``ValueError`` for a chunked body, which S3 clients do not send here."""
    length = 0
    for line in header.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            raise ValueError("the proxy passes on no chunked requests")
    return length
