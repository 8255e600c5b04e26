"""An inference pod without Kubernetes: its three containers as processes that share a folder and use free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from aurora_protocol.agent_api import PROBE_HEADER, AgentState, SwapRequest
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, TRAFFIC_SECRET, ServingSettings
from aurora_runtime.engine.server_process import free_port
from aurora_runtime.held_out_split import traffic_key
from aurora_runtime.serving.pod_files import PodFolder
from tests.assets.signing import ROOT_OWNER, write_keys

ADMIN_KEY = "admin-key-of-the-test"
SPECULATOR_KEY = "key-of-the-speculator"
AGENT_TOKEN = "agent-token-of-the-test"  # noqa: S105 - used by tests only
START_TIMEOUT_SECONDS = 900.0
STOP_TIMEOUT_SECONDS = 60.0
SWAP_TIMEOUT_SECONDS = 120.0
ENGINE_POLL_SECONDS = 0.3
NO_HEADERS: Mapping[str, str] = {}


def http_body(
    url: str, body: Any = None, *, method: str | None = None, token: str | None = None, timeout_seconds: float = 300
) -> bytes:
    """Send a request and return the answer's body. An answer with an error status raises HTTPError."""
    with _open(url, body, method=method, token=token, timeout_seconds=timeout_seconds) as answer:
        return bytes(answer.read())


def _open(
    url: str,
    body: Any,
    *,
    method: str | None,
    token: str | None,
    timeout_seconds: float,
    extra: Mapping[str, str] = NO_HEADERS,
) -> HTTPResponse:
    headers = {"Content-Type": "application/json", **extra} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - servers of this process
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_seconds)  # noqa: S310 - servers of this process
    return answer


def http_status(
    url: str,
    body: Any = None,
    *,
    method: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
) -> int:
    """Send a request and return the answer's status, errors included."""
    try:
        with _open(url, body, method=method, token=token, timeout_seconds=60, extra=headers) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def initial_channel() -> Channel:
    """The channel record that the operator writes first: version 0 is active."""
    return Channel(
        owner=ROOT_OWNER, epoch=1, lineage=1, active=0, reason=ChannelReason.INITIAL, created=datetime.now(UTC)
    )


@dataclass
class PodProcesses:
    """One pod. Run ``stage`` first, then enter the contexts ``engine()`` and ``agent()``."""

    path: Path
    settings: ServingSettings
    environment: dict[str, str]
    engine_port: int = field(default_factory=free_port)
    agent_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder = PodFolder(self.path / "state")
        self.keys, self.engine_keys = self.path / "keys", self.path / "engine-keys"
        self.signing = self.path / "signing"
        self.folder.path.mkdir(parents=True)
        self.keys.mkdir()
        self.engine_keys.mkdir()
        (self.keys / "admin-key").write_text(SPECULATOR_KEY + "\n")
        (self.engine_keys / "admin-key").write_text(ADMIN_KEY + "\n")
        (self.keys / "agent-token").write_text(AGENT_TOKEN + "\n")
        write_keys(self.signing)

    @property
    def engine_url(self) -> str:
        return f"http://127.0.0.1:{self.engine_port}"

    @property
    def agent_url(self) -> str:
        return f"http://127.0.0.1:{self.agent_port}"

    @property
    def traffic_key(self) -> bytes:
        """The key of the pod's draws, once the pod is staged. The lineage is the first."""
        return traffic_key((self.engine_keys / TRAFFIC_SECRET).read_text(), 1)

    @property
    def log(self) -> Path:
        return self.path / "engine.log"

    def _command(self, module: str, keys: Path, *arguments: str) -> list[str]:
        shared = ["--state", str(self.folder.path), "--keys", str(keys), "--host", "127.0.0.1"]
        return [sys.executable, "-m", module, *arguments, *shared]

    def _launcher_command(self) -> list[str]:
        return self._command("aurora_runtime.serving.launcher", self.engine_keys, "--port", str(self.engine_port))

    def _agent_command(self, *arguments: str) -> list[str]:
        more = ["--engine-key", str(self.engine_keys / "admin-key"), "--signing", str(self.signing)]
        return self._command("aurora_runtime.serving.agent", self.keys, *arguments, *more)

    def _variables(self) -> dict[str, str]:
        # Let the engine write compiled code even if this process may not. Otherwise every start takes a minute on two
        # cores.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,
            **self.environment,
            SETTINGS_VARIABLE: self.settings.to_json().decode(),
            "POD_NAME": "pod-0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def stage(self, *, timeout_seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run the init container, which downloads the draft to serve."""
        command = self._agent_command("stage", "--stage-find-seconds", "10")
        return subprocess.run(command, env=self._variables(), check=False, capture_output=True, timeout=timeout_seconds)

    @contextlib.contextmanager
    def engine(self) -> Iterator[subprocess.Popen[bytes]]:
        """The engine's process, ready to serve. Raises TimeoutError, with the end of the log, if it does not start."""
        command = self._launcher_command()
        with self.log.open("ab") as sink:
            process = subprocess.Popen(command, env=self._variables(), stdout=sink, stderr=subprocess.STDOUT)
        try:
            self._wait_for_engine(may_still_start=lambda: process.poll() is None)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_TIMEOUT_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def restarting_engine(self) -> Iterator[None]:
        """The engine's process, restarted whenever it ends, as the kubelet restarts a container."""
        command = self._launcher_command()
        stopping = threading.Event()

        def keep_running() -> None:
            while not stopping.is_set():
                with self.log.open("ab") as sink:
                    process = subprocess.Popen(command, env=self._variables(), stdout=sink, stderr=subprocess.STDOUT)
                while process.poll() is None and not stopping.wait(ENGINE_POLL_SECONDS):
                    pass
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait(STOP_TIMEOUT_SECONDS)

        keeper = threading.Thread(target=keep_running)
        keeper.start()
        try:
            self._wait_for_engine(may_still_start=lambda: True)
            yield
        finally:
            stopping.set()
            keeper.join(2 * STOP_TIMEOUT_SECONDS)

    def _wait_for_engine(self, may_still_start: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._engine_ready():
            if not may_still_start() or time.monotonic() > deadline:
                raise TimeoutError(f"the engine did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(ENGINE_POLL_SECONDS)

    def _engine_ready(self) -> bool:
        state = self.folder.read_engine_state()
        return state is not None and state.ready

    @contextlib.contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        """The agent's process, once its pod takes requests, the agent has ended, or has had 60 s."""
        ports = ("--port", str(self.agent_port), "--engine-port", str(self.engine_port))
        command = self._agent_command("serve", *ports)
        with (self.path / "agent.log").open("ab") as sink:
            process = subprocess.Popen(command, env=self._variables(), stdout=sink, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None:
                with contextlib.suppress(OSError):
                    if self.state().engine_ready:
                        break
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(STOP_TIMEOUT_SECONDS)

    def probe(self) -> int:
        """The status that the kubelet's readiness probe gets; 0 while the engine does not listen."""
        with contextlib.suppress(OSError):
            return http_status(f"{self.engine_url}/ready", headers={PROBE_HEADER: "readiness"})
        return 0

    def state(self) -> AgentState:
        return AgentState.from_json(http_body(f"{self.agent_url}/v1/state", token=AGENT_TOKEN))

    def request_swap(self, request: SwapRequest) -> int:
        """Ask the agent for a swap, as the operator does. Returns the HTTP status."""
        return http_status(f"{self.agent_url}/v1/draft", body=request.to_json(), method="PUT", token=AGENT_TOKEN)

    def wait_until_swap_ends(self) -> AgentState:
        """Wait until no swap is going on, and return the agent's state."""
        deadline = time.monotonic() + SWAP_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            state = self.state()
            if state.swap.phase.value in ("Idle", "Failed"):
                return state
            time.sleep(0.1)
        raise TimeoutError(f"the swap did not end in time; the agent's state: {self.state()}")
