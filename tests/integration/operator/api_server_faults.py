"""Faults between an informer and a real API server: a cut or silent network, and a restarted API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.cluster.command import CommandError
from tests.rig.api_server import ApiServer

READY_SECONDS = 120.0
ACCEPT_SECONDS = 0.2


class Network:
    """Forwards TCP connections to the API server, until a test cuts or stalls them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._whole = asyncio.Event()
        self._whole.set()
        self._stalled: list[asyncio.Event] = []
        self.is_cut = False
        self.port = 0
        self.connections: set[asyncio.Future[None]] = set()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()
        for stalled in self._stalled:
            stalled.set()

    def stall(self) -> None:
        """Deliver nothing more over the present connections, as when a firewall forgot them. New ones work."""
        self._whole.clear()
        self._stalled.append(self._whole)
        self._whole = asyncio.Event()
        self._whole.set()

    def restore(self) -> None:
        self.is_cut = False

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(asyncio.ensure_future(self._forward(reader, writer)))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.is_cut:
                raise ConnectionError("the network is cut")
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            if self.is_cut:  # in the meantime
                upstream_writer.transport.abort()
                raise ConnectionError("the network is cut")
        except OSError:
            writer.transport.abort()
            return
        whole = self._whole
        writers = {writer, upstream_writer}
        self._writers |= writers
        try:
            await asyncio.gather(
                _copy(reader, upstream_writer, whole), _copy(upstream_reader, writer, whole), return_exceptions=True
            )
        finally:
            self._writers -= writers
            for one in writers:
                one.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event) -> None:
    try:
        while data := await reader.read(1 << 16):
            await whole.wait()
            writer.write(data)
            await writer.drain()
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def network(server: ApiServer) -> AsyncIterator[Network]:
    """A network path to ``server`` on another port of the loopback."""
    made = Network(int(server.url.rsplit(":", 1)[1]))
    listener = await asyncio.start_server(made.forward, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.cut()
        listener.close()
        # A connection that was accepted just now is not among the connections yet.
        await asyncio.sleep(ACCEPT_SECONDS)
        await asyncio.gather(*made.connections)


def _process(server: ApiServer) -> tuple[int, list[str]]:
    """Process id and command line of the kube-apiserver whose data are in the server's directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
            if words and words[0].endswith("/kube-apiserver") and any(str(server.directory) in word for word in words):
                return int(path.parent.name), words
    raise RuntimeError(f"no kube-apiserver runs with data in {server.directory}")


@contextlib.contextmanager
def restarted(server: ApiServer) -> Iterator[None]:
    """Kill the API server with SIGKILL and start it again. Watches end, and calls fail meanwhile.

    The new process ends with the context, because the server's own context does not know it.
    """
    pid, command = _process(server)
    os.kill(pid, signal.SIGKILL)
    while _is_running(pid):
        time.sleep(0.05)
    log_file = server.directory / "kube-apiserver-again.log"
    with log_file.open("ab") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": str(server.directory)}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_ready(server, process, log_file)
        yield
    finally:
        process.kill()
        process.wait(15)


def _is_running(pid: int) -> bool:
    """False for a process that has ended, even if its parent did not ask for its exit status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            if server.kubectl("get", "--raw", "/readyz") == "ok":
                return
        except CommandError as error:
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"not ready: {log_file.read_text(errors='replace')[-2000:]}") from error
        time.sleep(0.2)
