"""A pod that tells which addresses it can connect to: how NetworkPolicies look from inside the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.command import wait_until

_SCRIPT = """
import concurrent.futures, json, socket, sys

def outcome(address):
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "dropped"
    return "connected"

addresses = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(len(addresses)) as pool:
    print(json.dumps(dict(zip(addresses, pool.map(outcome, addresses)))))
"""


class Outcome(StrEnum):
    """How an attempt to connect ends."""

    CONNECTED = "connected"
    REFUSED = "refused"
    """The packet arrived, and nothing listens on the port."""
    DROPPED = "dropped"
    """The packet did not arrive: a policy forbids the connection."""


@dataclass(frozen=True)
class ConnectionProbe:
    """A pod whose image has Python."""

    cluster: Cluster
    namespace: str
    pod: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def connect(self, *addresses: str) -> dict[str, Outcome]:
        """Try all addresses (``host:port``) at once, for one second."""
        command = ("exec", self.pod, "-n", self.namespace, "--", "python3", "-c", _SCRIPT, *addresses)
        outcomes: dict[str, str] = json.loads(self.cluster.kubectl(*command))
        return {address: Outcome(text) for address, text in outcomes.items()}

    def wait_until(self, expected: Mapping[str, Outcome], timeout_seconds: float = 30) -> None:
        """Try until the outcomes are the expected ones. A policy takes effect a moment after the API server has it."""
        wait_until(
            f"from pod {self.pod} of {self.namespace}: {dict(expected)}",
            lambda: self.connect(*expected) == expected,
            timeout_seconds,
            lambda: f": {self.connect(*expected)}",
        )

    def wait_for_account(self) -> None:
        """Wait until the namespace has its service account. The API server refuses pods before."""
        wait_until(
            f"the service account of {self.namespace}",
            lambda: bool(self.cluster.get("serviceaccounts", "-n", self.namespace)["items"]),
            30,
        )

    def manifest(self, image: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.pod, "namespace": self.namespace, "labels": dict(self.labels)},
            "spec": {
                "containers": [{"name": "main", "image": image, "command": ["sleep", "3600"]}],
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
            },
        }


def start_probes(image: str, *probes: ConnectionProbe) -> None:
    """Start the pods in namespaces that exist, and wait until all run. The image has Python and a shell."""
    for probe in probes:
        probe.wait_for_account()
        probe.cluster.apply(probe.manifest(image))
    for probe in probes:
        ready = ("wait", "--for=condition=Ready", f"pod/{probe.pod}", "--timeout=60s")
        probe.cluster.kubectl(*ready, "-n", probe.namespace)
