"""The operator as a process of its own, and what it costs.

CPU time and memory come from ``/proc``. Reconciled speculators come from the operator's own metrics.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tests.bench.operator.fleet import Speculator

from aurora_api.crd import REPOSITORY

IMAGE = "aurora.test/stand-in:1"
STOP_TIMEOUT_SECONDS = 30.0
_RECONCILED = re.compile(r"^aurora_reconciles_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_MEBIBYTE_IN_KIBIBYTES = 1024


@dataclass
class OperatorProcess:
    """Starts, kills and measures the operator."""

    kubeconfig: Path
    log: Path
    ports: tuple[int, int]
    """Ports of metrics and of liveness."""
    _process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        metrics, liveness = map(str, self.ports)
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.kubeconfig),
            "AURORA_METRICS_PORT": metrics,
            "AURORA_HEALTH_PORT": liveness,
            "AURORA_RUNTIME_IMAGE": IMAGE,
            "AURORA_AGENT_IMAGE": IMAGE,
            "POD_NAMESPACE": "default",
            "POD_NAME": "operator-bench",
        }
        command = [sys.executable, "-m", "aurora_operator"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY)

    def kill(self) -> None:
        """Kill the operator with SIGKILL, so that it finishes nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_SECONDS)
            self._process = None

    def cpu_seconds(self) -> float:
        """CPU time of all threads so far, in user and in kernel mode. Raises when the operator has ended."""
        fields = (self._proc() / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mebibytes(self) -> dict[str, float]:
        """Resident memory now, and the highest so far."""
        text = (self._proc() / "status").read_text()
        names = {"now": "VmRSS", "peak": "VmHWM"}
        found = {key: re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE) for key, name in names.items()}
        return {key: round(int(match[1]) / _MEBIBYTE_IN_KIBIBYTES, 1) for key, match in found.items() if match}

    def _proc(self) -> Path:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the operator has ended; the end of its log:\n{self.log.read_text()[-3000:]}")
        return Path(f"/proc/{self._process.pid}")

    async def reconciled(self, session: aiohttp.ClientSession) -> set[Speculator]:
        """The speculators that this process has reconciled to the end. Empty while the operator does not answer."""
        self._proc()
        try:
            timeout = aiohttp.ClientTimeout(total=30)
            # Only one metric: to render all of a thousand speculators every second would slow the operator down.
            url = f"http://127.0.0.1:{self.ports[0]}/metrics?name[]=aurora_reconciles_total"
            async with session.get(url, timeout=timeout) as response:
                return reconciled_speculators(await response.text())
        except (aiohttp.ClientError, TimeoutError):
            return set()


def reconciled_speculators(metrics: str) -> set[Speculator]:
    """The speculators with a reconcile whose outcome is ``done``, from the operator's metrics."""
    done = set()
    for labels, value in _RECONCILED.findall(metrics):
        named = dict(_LABEL.findall(labels))
        if named.get("outcome") == "done" and float(value) > 0:
            done.add(Speculator(named["namespace"], named["name"]))
    return done
