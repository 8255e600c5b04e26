"""A real Prometheus on this machine's loopback, and promtool, built from Go modules once per machine.

Invariant: when the context ends, the process is gone. Its data are in the folder that the caller gave.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.command import stop_process, url_answers, wait_until
from tests.rig.api_server import free_ports
from tests.rig.go_tools import built_tool

MODULE: Final = Path(__file__).parent
TAGS: Final = "remove_all_sd,enable_kubernetes_sd"
"""Of all ways to find targets, only that in Kubernetes. The others are most of Prometheus' code."""
START_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 30.0
CALL_SECONDS: Final = 30.0


class QueryError(AssertionError):
    """Prometheus refused a query. The message has the query and the answer."""


@dataclass(frozen=True)
class Target:
    """One thing that Prometheus scrapes."""

    labels: Mapping[str, str]
    health: str
    """``up``, ``down``, or ``unknown`` before the first scrape."""
    last_error: str


@dataclass(frozen=True)
class Rule:
    """One alert. ``health`` is ``ok``, ``err``, or ``unknown`` before the first evaluation."""

    name: str
    health: str
    last_error: str


@dataclass(frozen=True)
class Series:
    """The labels of one series, and its values in order of time."""

    labels: Mapping[str, str]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus at ``url``."""

    url: str

    def targets(self) -> tuple[Target, ...]:
        """The targets that it scrapes."""
        found = self._get("targets", state="active")["activeTargets"]
        return tuple(Target(one["labels"], one["health"], one["lastError"]) for one in found)

    def rules(self) -> tuple[Rule, ...]:
        """The alerts of all groups."""
        rules = [rule for group in self._get("rules", type="alert")["groups"] for rule in group["rules"]]
        return tuple(Rule(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules)

    def now(self, expression: str) -> tuple[Series, ...]:
        """The present value of each series of ``expression``. Raises :class:`QueryError`."""
        found = self._get("query", query=expression)["result"]
        return tuple(Series(one["metric"], (float(one["value"][1]),)) for one in found)

    def between(self, expression: str, start: float, end: float, step_seconds: float) -> tuple[Series, ...]:
        """The values of ``expression`` as a panel of Grafana asks for them, without NaN. Raises :class:`QueryError`.

        Args:
            start, end: Unix time in seconds.
        """
        found = self._get("query_range", query=expression, start=start, end=end, step=step_seconds)["result"]
        numbers = [(one["metric"], [float(value) for _, value in one["values"]]) for one in found]
        known = [(labels, tuple(value for value in values if not math.isnan(value))) for labels, values in numbers]
        return tuple(Series(labels, values) for labels, values in known if values)

    def _get(self, endpoint: str, **parameters: str | float) -> Any:
        url = f"{self.url}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=CALL_SECONDS) as response:  # noqa: S310 - on the loopback
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryError(f"{parameters}: {error.read().decode()}") from error


def promtool() -> Path:
    """The program promtool. The first call builds it."""
    return built_tool(MODULE, "promtool", TAGS)


@contextlib.contextmanager
def prometheus(folder: Path, configuration: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run Prometheus until the context ends.

    Args:
        folder: A folder of its own, for the configuration and the data.
        configuration: The content of its configuration file.

    Raises:
        NotReadyError: It was not ready within 60 s. The message has its log.
    """
    file, log = folder / "prometheus.yaml", folder / "prometheus.log"
    file.write_text(yaml.safe_dump(dict(configuration)))
    (port,) = free_ports(1)
    command: list[str | Path] = [
        *(built_tool(MODULE, tags=TAGS), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GOMAXPROCS": "2"}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until("Prometheus", lambda: url_answers(f"{url}/-/ready"), START_TIMEOUT_SECONDS, log.read_text)
        yield Prometheus(url)
    finally:
        stop_process(process, STOP_TIMEOUT_SECONDS)
