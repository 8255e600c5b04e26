"""A real SGLang server on the CPU engine, started for a test and surely stopped after it.

Invariant: when the context ends, whatever way, no process of the server is left; the server runs in a process group of
its own and is asked first (SIGTERM to the main process only, as SGLang demands) and killed as a group after a bound.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_runtime.cpu.launch_settings import environment, server_args

START_TIMEOUT_S = 480.0
STOP_TIMEOUT_S = 60.0
NUM_STEPS = 3


class ServerFailed(RuntimeError):
    """The server died or did not become ready in time; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Server:
    """A running server: its base URL, main process and log file, and how long it took to become ready."""

    url: str
    port: int
    pid: int
    log: Path
    startup_s: float

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = 300.0) -> Any:
        """POST JSON and return the JSON answer.

        Raises:
            ServerFailed: the server answered with an error.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        if response.status != 200:
            raise ServerFailed(f"{path} answered {response.status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)


def free_port() -> int:
    """A TCP port that is free now. Only ports below 45000: SGLang derives others by adding to it."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 45000:
            return port
    raise RuntimeError("no free port below 45000")


def speculation(
    draft: Path | None, *, num_steps: int = NUM_STEPS, topk: int = 1, tokens: int | None = None
) -> list[str]:
    """EAGLE-3 flags for a draft; none without one."""
    if draft is None:
        return []
    return [
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)),
        *("--speculative-num-steps", str(num_steps), "--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(tokens or num_steps + 1)),
    ]


@contextlib.contextmanager
def sglang_server(
    model: Path,
    draft: Path | None = None,
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    log: Path | None = None,
    num_steps: int = NUM_STEPS,
    plugins: str = "aurora_cpu,aurora_vocabulary",
    engine_args: Sequence[str] | None = None,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, stop it.

    Args:
        draft: EAGLE-3 draft directory; None serves without speculation (or with what `extra_args` says).
        env: variables on top of the CPU engine's.
        plugins: which SGLang plugins may load (`SGLANG_PLUGINS`), comma-separated.
        engine_args: replaces the CPU engine's flags.

    Raises:
        ServerFailed: it did not come up.
    """
    port = free_port()
    logfile = log or Path(tempfile.mkdtemp(prefix="sglang-")) / "server.log"
    speculative = draft is not None or any(str(a).startswith("--speculative-algorithm") for a in extra_args)
    command = [
        *(str(Path(sys.executable).with_name("sglang")), "serve", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(free_port())),
        *(server_args(speculative) if engine_args is None else engine_args),
        *speculation(draft, num_steps=num_steps),
        *map(str, extra_args),
    ]
    # Compiled code is written, whatever this process was told: without it every start costs a minute of two cores.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"HF_HUB_OFFLINE": "1", "SGLANG_PLUGINS": plugins}
    variables |= {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", "TOKENIZERS_PARALLELISM": "false"}
    variables |= environment(variables)
    variables |= dict(env or {})
    with logfile.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=variables,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    began = time.monotonic()
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, port, logfile)
        yield Server(url, port, process.pid, logfile, time.monotonic() - began)
    finally:
        _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"the server exited with {process.returncode}\n{_tail(log)}")
        if _ready(port):
            return
        time.sleep(0.25)
    raise ServerFailed(f"not ready within {START_TIMEOUT_S:.0f} s\n{_tail(log)}")


def _ready(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _tail(log: Path, lines: int = 40, width: int = 300) -> str:
    return "\n".join(line[:width] for line in log.read_text(errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate the main process; then kill what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
