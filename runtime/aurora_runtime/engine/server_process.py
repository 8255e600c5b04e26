"""A stock SGLang server as a child process: command line, environment, start, readiness and stop.

Invariants: a server that was started is gone when :meth:`EngineProcess.stop` returns. The server runs in a process
group of its own. It is first asked to stop by SIGTERM to the main process only, because SGLang's scheduler dies of a
signal to the whole group. Servers that are compared are built from one :class:`EngineSpec`, so that they differ in
their speculation alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aurora_api.v1alpha1.serving import DEFAULT_MAX_RUNNING_REQUESTS
from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY, STORE_KEYS_VARIABLE
from aurora_runtime.cpu import launch_settings as cpu
from aurora_runtime.engine.machine import ISOLATED_PYTHON
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import SPECULATION_PLUGIN, Eagle3, Ngram
from aurora_runtime.errors import EngineFault

log = logging.getLogger(__name__)

STOP_SECONDS = 8.0
"""How long a server may take to end after SIGTERM before it is killed."""
READY_POLL_SECONDS = 0.25
LOG_TAIL_BYTES = 16384
PORTS = range(20000, 32000)
"""Below the kernel's ephemeral range, so that a free port stays free until it is bound."""
_ERROR_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception|Exhausted): ")
"""The last line of a traceback."""
_STORE_CREDENTIALS = (ACCESS_KEY, SECRET_KEY, "AWS_SESSION_TOKEN", STORE_KEYS_VARIABLE)


@dataclass(frozen=True)
class EngineSpec:
    """The settings that all compared servers share. ``kv_tokens`` is the size of each KV cache."""

    model: str
    device: str  # "cpu" or "cuda"
    kv_tokens: int
    dtype: str = "auto"
    revision: str | None = None
    extra_args: tuple[str, ...] = ()
    max_running_requests: int = DEFAULT_MAX_RUNNING_REQUESTS

    def arguments(self, port: int, speculation: Eagle3 | Ngram | None, memory_share: float) -> list[str]:
        """The command line. ``memory_share`` is the share of the free GPU memory that the server may use."""
        command = [
            *(
                str(Path(sys.executable).with_name("sglang")),
                "serve",
                "--model-path",
                self.model,
                "--dtype",
                self.dtype,
            ),
            *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(free_port())),
            *("--max-running-requests", str(self.max_running_requests)),
        ]
        if self.revision is not None:
            command += ["--revision", self.revision]
        if self.device == "cpu":
            command += cpu.server_args(speculation is not None, kv_tokens=self.kv_tokens)
        else:
            command += ["--max-total-tokens", str(self.kv_tokens), "--mem-fraction-static", f"{memory_share:.3f}"]
        if speculation is not None:
            command += speculation.arguments()
        return [*command, *self.extra_args]

    def environment(self, base: Mapping[str, str], speculation: Eagle3 | Ngram | None = None) -> dict[str, str]:
        """The server's environment: ``base`` without the store's credentials. The server captures no traces."""
        variables = {name: value for name, value in base.items() if name not in _STORE_CREDENTIALS}
        variables |= {"SGLANG_PLUGINS": "aurora_cpu,aurora_vocabulary", "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
        variables |= {"TOKENIZERS_PARALLELISM": "false"} | ISOLATED_PYTHON
        if isinstance(speculation, Eagle3) and speculation.controller is not None:
            variables |= speculation.controller.environment()
            variables["SGLANG_PLUGINS"] += f",{SPECULATION_PLUGIN}"
        if self.device == "cpu":
            variables |= cpu.environment(variables)
        return variables


@dataclass
class EngineProcess:
    """One server. Call :meth:`start`, then :meth:`wait_ready`, and :meth:`stop` in a ``finally``."""

    name: str
    log_file: Path
    port: int = field(default_factory=lambda: free_port())
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, spec: EngineSpec, speculation: Eagle3 | Ngram | None, *, memory_share: float = 0.85) -> None:
        """Start the process; does not wait."""
        command = spec.arguments(self.port, speculation, memory_share)
        with self.log_file.open("wb") as sink:
            self._process = subprocess.Popen(
                command,
                env=spec.environment(os.environ, speculation),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        log.info("engine %s: started on port %d", self.name, self.port)

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_ready(self, deadline: float) -> None:
        """Wait for ``/ready`` until ``deadline`` (monotonic); call it from a thread without an event loop.

        Raises :class:`EngineFault` with the end of the log.
        """
        asyncio.run(self._wait_ready(deadline))

    async def _wait_ready(self, deadline: float) -> None:
        began = time.monotonic()
        async with open_session() as session:
            client = SGLangClient(session, self.url)
            while time.monotonic() < deadline:
                if not self.is_alive():
                    why = error_in_log(self.log_tail(lines=200))
                    raise EngineFault(
                        f"engine {self.name} exited while starting{why}; the end of its log:\n{self.log_tail()}"
                    )
                if await client.is_ready():
                    log.info("engine %s: ready after %.0f s", self.name, time.monotonic() - began)
                    return
                await asyncio.sleep(READY_POLL_SECONDS)
        raise EngineFault(f"engine {self.name} was not ready in time; the end of its log:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        """The end of the server's log. By default SGLang does not log the texts of requests."""
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - LOG_TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    def ask_to_stop(self) -> None:
        """Ask the server to stop and return at once, so that several servers can end at the same time."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, patience_seconds: float = STOP_SECONDS) -> None:
        """End the server and the rest of its process group; harmless when the server is gone already.

        A server that has not ended within ``patience_seconds`` is killed: no caller waits for an answer any more.
        """
        process = self._process
        if process is None:
            return
        self.ask_to_stop()
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._process = None


def error_in_log(log_text: str) -> str:
    """The last error that a server's log names, after ``: ``. Empty when the log names none."""
    errors = [line.strip() for line in log_text.splitlines() if _ERROR_LINE.match(line.strip())]
    return f": {errors[-1][:300]}" if errors else ""


def free_port() -> int:
    """A TCP port that is free now."""
    start = PORTS.start + (os.getpid() * 37 + time.monotonic_ns()) % len(PORTS)
    for offset in range(len(PORTS)):
        port = PORTS.start + (start - PORTS.start + offset) % len(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EngineFault("no free port")
