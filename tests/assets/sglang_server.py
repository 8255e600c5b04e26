"""A real SGLang server, on the CPU engine unless a bench says otherwise, that lives as long as a test's context.

Invariant: no process of the server is left when the context ends, even after an error. The server runs in its own
process group. Only the main process gets SIGTERM, as SGLang demands. The rest of the group is killed when the main
process has ended, or after a timeout.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_runtime.engine.server_process import free_port
from tests.assets.bench_engine import server_arguments, server_environment

START_TIMEOUT_SECONDS = 480.0
STOP_TIMEOUT_SECONDS = 60.0
DRAFT_STEPS = 3


class ServerFailed(RuntimeError):
    """The server ended, answered with an error, or was not ready in time. Most messages contain the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    port: int
    pid: int
    """The main process."""
    log: Path

    def post(self, path: str, body: dict[str, Any], *, timeout_seconds: float = 300.0) -> Any:
        """POST JSON and return the JSON answer.

        Raises:
            ServerFailed: The server answered with another status than 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        if response.status != 200:
            raise ServerFailed(f"{path} answered {response.status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)


def speculation_flags(draft: Path | None, *, num_steps: int = DRAFT_STEPS) -> list[str]:
    """SGLang's flags for speculation with chains of an EAGLE-3 draft. Empty without a draft."""
    if draft is None:
        return []
    return [
        *("--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(draft)),
        *("--speculative-num-steps", str(num_steps), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(num_steps + 1)),
    ]


@contextlib.contextmanager
def sglang_server(
    model: Path,
    draft: Path | None = None,
    extra_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    log: Path | None = None,
    num_steps: int = DRAFT_STEPS,
    plugins: str = "aurora_cpu,aurora_vocabulary",
    stop_seconds: float = STOP_TIMEOUT_SECONDS,
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and stop it when the context ends.

    Args:
        draft: Directory of an EAGLE-3 draft. None: no speculation, unless `extra_args` ask for it.
        env: Variables that are added to the CPU engine's.
        plugins: The SGLang plugins that may load (`SGLANG_PLUGINS`), separated by commas.
        stop_seconds: How long the server may take to end by itself, which SGLang begins only every 5 s. 0 where
            nothing reads what the server does at its end.

    Raises:
        ServerFailed: The server did not become ready.
    """
    port = free_port()
    log_file = log or Path(tempfile.mkdtemp(prefix="sglang-")) / "server.log"
    speculative = draft is not None or any(str(a).startswith("--speculative-algorithm") for a in extra_args)
    command = [
        *(str(Path(sys.executable).with_name("sglang")), "serve", "--model-path", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(free_port())),
        *server_arguments(speculative),
        *speculation_flags(draft, num_steps=num_steps),
        *map(str, extra_args),
    ]
    # Let SGLang write compiled code even if this process may not. Otherwise every start takes a minute on two cores.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables |= {"HF_HUB_OFFLINE": "1", "SGLANG_PLUGINS": plugins}
    variables |= {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", "TOKENIZERS_PARALLELISM": "false"}
    variables |= server_environment(variables)
    variables |= dict(env or {})
    with log_file.open("wb") as sink:
        process = subprocess.Popen(
            command,
            env=variables,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, port, log_file)
        yield Server(url, port, process.pid, log_file)
    finally:
        _stop(process, stop_seconds)


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"the server exited with {process.returncode} before it was ready\n{_tail(log)}")
        if _ready(port):
            return
        time.sleep(0.25)
    raise ServerFailed(f"the server was not ready within {START_TIMEOUT_SECONDS:.0f} s\n{_tail(log)}")


def _ready(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def _tail(log: Path, lines: int = 40, width: int = 300) -> str:
    return "\n".join(line[:width] for line in log.read_text(errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """Terminate the main process, then kill the rest of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
