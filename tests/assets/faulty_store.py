"""A fake S3 store on this machine that misbehaves in ways that a real store cannot be made to show.

The fake hangs, never stops sending, redirects, or answers with what is no S3 answer. It checks no signature.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request to the fake. An :data:`Answer` uses the methods below."""

    protocol_version = "HTTP/1.1"
    server: _Server
    body: bytes = b""

    def _handle(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.store.requests.append(f"{self.command} {self.path}")
        # A client that gives up closes the connection.
        with contextlib.suppress(ConnectionError):
            self.server.store.answer(self)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815 - names of http.server

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def endless_body(status: int) -> Answer:
    """A chunked body that never ends, as fast as the client reads."""

    def answer(request: Request) -> None:
        request.wfile.write(f"HTTP/1.1 {status} OK\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while not request.server.store.stopped.is_set():
            request.wfile.write(b"10000\r\n" + b"a" * 0x10000 + b"\r\n")

    return answer


def hang(request: Request) -> None:
    """No answer at all."""
    request.server.store.stopped.wait()


def redirect(request: Request) -> None:
    """A redirect to the fake itself."""
    request.reply(302, Location=f"{request.server.store.endpoint}/")


def whole(status: int, body: bytes = b"", **headers: str) -> Answer:
    """A whole answer."""
    return lambda request: request.reply(status, body, **headers)


@dataclass
class FaultyStore:
    """The fake. ``answer`` may be replaced at any time."""

    answer: Answer
    address: str = "127.0.0.1"
    scheme: str = "http"
    port: int = 0
    requests: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.address}:{self.port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, store: FaultyStore, tls: ssl.SSLContext | None) -> None:
        super().__init__((store.address, 0), Request)
        self.store = store
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that gives up resets its connection."""


@contextlib.contextmanager
def faulty_store(
    answer: Answer, *, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[FaultyStore]:
    """Run the fake on ``address`` until the context ends, with TLS if ``tls`` is given."""
    store = FaultyStore(answer, address, scheme="http" if tls is None else "https")
    with _Server(store, tls) as server:
        store.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            store.stopped.set()
            server.shutdown()
            thread.join(5)
