"""What an attacker has on the cluster: the engine's port, the bucket, and a shell in a container."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.installation import SYSTEM_NAMESPACE
from tests.rig.running_speculator import Resource, RunningSpeculator

NAME = "attacked"
SPEC: dict[str, Any] = {
    "training": {"publishTokens": 1_000_000_000},
    "validation": {"concurrencies": [1], "maxNewTokens": 32},
}
"""The trainer learns but publishes nothing, so every candidate is an attacker's."""
REQUEST_SECONDS = 60.0
PYTHON = "python3"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    text: str


@dataclass
class AttackRig(RunningSpeculator):
    """The speculator that is attacked."""

    specialist: Path
    """A draft that the target's pods would load."""
    killed: set[str] = field(default_factory=set)
    """Pods and containers that a test itself killed."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    """Make each question of :meth:`generate` a new one."""

    def post(self, path: str, body: bytes | dict[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
        """What the speculator's Service answers to a client."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        known = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.aurora.url(self.name) + path, data, known)  # noqa: S310 - http
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310 - http
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode())

    def generate(self) -> Answer:
        """The answer to a request without malice. Its prompt is new, because one prompt may be held out for ever."""
        text = f"The square of {next(self.numbers)} is"
        return self.post("/generate", {"text": text, "sampling_params": {"max_new_tokens": 8}})

    def shell(self, pod: str, container: str, program: str) -> str:
        """Run a Python program in a container, as an attacker who has taken the container over."""
        command = (PYTHON, "-c", program)
        return self.aurora.cluster.kubectl("exec", pod, "-c", container, "-n", self.aurora.namespace, "--", *command)

    def inference_pods(self) -> list[Resource]:
        return self.component_pods("inference")

    def restarts(self) -> dict[str, int]:
        """Restarts of the containers of the speculator and of Aurora that no test killed, by pod and container."""
        return {name: count for name, count in self._restarts().items() if name not in self.killed}

    def restart_count(self, pod: str, container: str) -> int:
        return self._restarts().get(f"{pod}/{container}", 0)

    def _restarts(self) -> dict[str, int]:
        return {
            f"{pod['metadata']['name']}/{container['name']}": container["restartCount"]
            for pod in self.pods()
            for container in pod["status"].get("containerStatuses", [])
        }

    def checksums(self) -> set[str]:
        """Checksums of the drafts that the pods serve."""
        return {pod.get("checksum") for pod in self.status()["pods"]}

    def change_record(self, key: str, change: Callable[[Any], object]) -> None:
        """Read a record of the store, change it in place, and overwrite it."""
        objects = self.registry.objects
        content = json.loads(objects.get(key))
        change(content)
        objects.put(key, json.dumps(content).encode())

    def operator_memory_bytes(self) -> int:
        """The largest resident memory of the operator's pods, as their metric tells."""
        sizes = []
        for pod in self.operator_pods():
            path = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod['metadata']['name']}:8080/proxy/metrics"
            text = self.aurora.cluster.kubectl("get", "--raw", path)
            sizes += [float(line.split()[1]) for line in text.splitlines() if line.startswith("process_resident_m")]
        return int(max(sizes))
