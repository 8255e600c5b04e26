"""Fakes of object stores that misbehave. A real store cannot be made to do this. Each listens on this machine."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from collections.abc import Iterator
from enum import StrEnum

CHUNK = b"x" * 65536


class Behaviour(StrEnum):
    """How a fake store answers every request."""

    ENDLESS = "endless"
    """Status 200 and a body that never ends."""
    REDIRECT = "redirect"
    """A redirect to itself."""


class _FakeStore(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: str, behaviour: Behaviour) -> None:
        super().__init__((address, 0), _Answer)
        self.behaviour = behaviour
        self.stopped = threading.Event()


class _Answer(socketserver.BaseRequestHandler):
    server: _FakeStore

    def handle(self) -> None:
        self.request.settimeout(60)
        with contextlib.suppress(OSError):
            self.request.recv(65536)
            {
                Behaviour.ENDLESS: self._endless,
                Behaviour.REDIRECT: self._redirect,
            }[self.server.behaviour]()

    def _endless(self) -> None:
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\n\r\n")
        while not self.server.stopped.is_set():
            self.request.sendall(CHUNK)
            time.sleep(0.001)

    def _redirect(self) -> None:
        host, port = self.server.server_address[:2]
        text = (
            f"HTTP/1.1 302 Found\r\nLocation: http://{host!s}:{port}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        self.request.sendall(text.encode())


@contextlib.contextmanager
def fake_store(address: str, behaviour: Behaviour) -> Iterator[str]:
    """A fake store that listens on ``address`` while the context lasts. Yields its endpoint."""
    with _FakeStore(address, behaviour) as server:
        thread = threading.Thread(target=server.serve_forever, name=f"fake-store-{behaviour}", daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}"
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join(10)
