"""Faults between an informer and a real API server: a cut or silent network, and a restarted API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from tests.rig.api_server import ApiServer

READY_SECONDS = 60.0


class Network:
    """Forwards TCP connections to the API server, until a test cuts or stalls them."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._whole = asyncio.Event()
        self._whole.set()
        self.is_cut = False
        self.port = 0

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self.is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Deliver nothing more over the present connections, as when a firewall forgot them. New ones work."""
        self._whole.clear()
        self._whole = asyncio.Event()
        self._whole.set()

    def restore(self) -> None:
        self.is_cut = False

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
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
    """Kill the API server with SIGKILL and start it again. It knows only the history that etcd still has.

    The new process ends with the context, because the server's own context does not know it.
    """
    pid, command = _process(server)
    os.kill(pid, signal.SIGKILL)
    while _is_running(pid):
        time.sleep(0.05)
    with (server.directory / "kube-apiserver-again.log").open("ab") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": str(server.directory)}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_until_ready(server)
        yield
    finally:
        process.kill()
        process.wait(15)


def compact(server: ApiServer) -> None:
    """Let etcd forget all history, as it does of itself after five minutes. The API server may still know some."""
    _, command = _process(server)
    etcd = next(word for word in command if word.startswith("--etcd-servers=")).partition("=")[2]
    revision = _etcd(etcd, "range", {"key": "Lw=="})["header"]["revision"]
    _etcd(etcd, "compaction", {"revision": revision, "physical": True})


def _etcd(url: str, call: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{url}/v3/kv/{call}", json.dumps(body).encode(), method="POST")  # noqa: S310 - http, by etcd
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def _is_running(pid: int) -> bool:
    """False for a process that has ended, even if its parent did not ask for its exit status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ready(server: ApiServer) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            if server.kubectl("get", "--raw", "/readyz") == "ok":
                return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)
