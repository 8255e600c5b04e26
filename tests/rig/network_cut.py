"""A fake network between a process and a server: a TCP proxy that can stop passing bytes on.

Invariant: while the network is cut, neither side gets an error or a byte. Afterwards the proxy either forgets what was
sent, as with packets that are dropped, or delivers it late.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_CHUNK_BYTES = 65536
_CONNECT_TIMEOUT_SECONDS = 5.0


class TcpProxy:
    """Listens on a port of the loopback, and passes connections on to ``port``."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._passes = threading.Event()
        self._passes.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop everything from now on. Connections stay open, and new ones are accepted."""
        self._passes.clear()

    def mend(self) -> None:
        """Pass new connections on. The connections of the time of the cut are reset, as by a host that forgot them."""
        self._close_all()
        self._passes.set()

    def deliver(self) -> None:
        """Pass on what was sent since the cut, however late, as a network does that only delayed its packets."""
        self._passes.set()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._close_all()
        self._passes.set()

    def _close_all(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._passes.wait()
        try:
            server = socket.create_connection(self._target, _CONNECT_TIMEOUT_SECONDS)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._passes.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tcp_proxy(port: int) -> Iterator[TcpProxy]:
    """A proxy to ``port`` of the loopback, until the context ends."""
    proxy = TcpProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
