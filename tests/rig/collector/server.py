"""A real OpenTelemetry collector on this machine's loopback, built from a Go module once per machine.

It takes OTLP/HTTP, and writes each accepted request to a file as one line of JSON.

Invariant: when the context ends, the process is gone. The file is in the folder that the caller gave.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.command import NotReadyError, stop_process, wait_until
from tests.rig.api_server import free_ports
from tests.rig.go_tools import built_tool

MODULE: Final = Path(__file__).parent
LOG_FILE: Final = "collector.log"
FULL_MIB: Final = 1
"""A limit of memory that each collector is above from its start."""
CHECK_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 0.05
START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 30.0


class Collector:
    """One collector, which may be stopped and started again. It keeps its port and its file.

    Args:
        folder: A folder of its own, for the configuration, the log and the file of accepted requests.
        token: The bearer token that each request must carry. Empty: it takes requests of everybody.
    """

    def __init__(self, folder: Path, token: str = "") -> None:
        (self._port,) = free_ports(1)
        self._folder, self._token = folder, token
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, *, full: bool = False) -> None:
        """Run the collector, and wait until it listens.

        Args:
            full: Give it so little memory that it refuses everything.

        Raises:
            NotReadyError: It did not listen within 60 s. The message has its log.
        """
        configuration, log = self._folder / "collector.yaml", self._folder / LOG_FILE
        configuration.write_text(yaml.safe_dump(self._configuration(full=full)))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "GOMAXPROCS": "2"}
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                [built_tool(MODULE), f"--config=file:{configuration}"],
                cwd=self._folder,
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        wait_until("the collector", self._listens, START_TIMEOUT_SECONDS, log.read_text)
        if full:
            time.sleep(10 * CHECK_SECONDS)  # it looks at its memory for the first time after CHECK_SECONDS

    def stop(self) -> None:
        """End the collector as Kubernetes does, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            stop_process(self._process, STOP_TIMEOUT_SECONDS)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the collector's kernel take connections while the collector does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def requests(self) -> list[Any]:
        """The accepted requests, each as the collector understood it: an ``ExportTraceServiceRequest`` in JSON."""
        file = self._folder / "traces.json"
        *lines, _unfinished = file.read_bytes().split(b"\n") if file.exists() else [b""]
        return [json.loads(line) for line in lines]

    def _configuration(self, *, full: bool) -> dict[str, Any]:
        http: dict[str, Any] = {"endpoint": f"127.0.0.1:{self._port}"}
        pipeline: dict[str, Any] = {"receivers": ["otlp"], "exporters": ["file"]}
        written = {"path": str(self._folder / "traces.json"), "append": True, "flush_interval": f"{FLUSH_SECONDS}s"}
        service: dict[str, Any] = {"pipelines": {"traces": pipeline}}
        configuration: dict[str, Any] = {
            "receivers": {"otlp": {"protocols": {"http": http}}},
            "exporters": {"file": written},
            "service": service,
        }
        if self._token:
            http["auth"] = {"authenticator": "bearertokenauth"}
            configuration["extensions"] = {"bearertokenauth": {"token": self._token}}
            service["extensions"] = ["bearertokenauth"]
        if full:
            pipeline["processors"] = ["memory_limiter"]
            limits = {"check_interval": f"{CHECK_SECONDS}s", "limit_mib": FULL_MIB}
            configuration["processors"] = {"memory_limiter": limits}
        return configuration

    def _listens(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise NotReadyError(f"the collector ended: {(self._folder / LOG_FILE).read_text()}")
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False


@contextlib.contextmanager
def collector(folder: Path, token: str = "") -> Iterator[Collector]:
    """Run a collector until the context ends. ``Collector`` has the arguments."""
    running = Collector(folder, token)
    try:
        running.start()
        yield running
    finally:
        running.stop()
