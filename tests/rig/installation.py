"""Aurora, installed on a cluster with helm and the embedded S3 store, and the calls that a user makes on it."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.assets.model import ensure_model
from tests.cluster.cluster import Cluster
from tests.cluster.command import CommandError
from tests.rig.local_image import ROOT, local_image
from tests.rig.machine_policy import policy_for_this_machine
from tests.rig.small_speculator import small_speculator

SYSTEM_NAMESPACE = "aurora-system"
RELEASE = "aurora"
RESOURCE = "auroraspeculators.aurora.dev"
BUCKET = "aurora"
CHART = "charts/aurora-operator"
POLL_SECONDS = 2
LOG_LINES = 60
"""How much of a crashed container's log an error shows."""


@dataclass(frozen=True)
class StoreAccess:
    """How this machine reaches the embedded store."""

    endpoint: str
    access_key: str
    secret_key: str


class Installation:
    """One helm release, and one namespace for speculators.

    Args:
        scraper_namespaces: namespaces whose pods may scrape agents and engines.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str = "default",
        scraper_namespaces: Sequence[str] = (),
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.scraper_namespaces = tuple(scraper_namespaces)

    def install(self, checkout: Path = ROOT, store_checkout: Path | None = None) -> None:
        """Load the image and install or upgrade the chart. Returns when the operator and the store are ready.

        Args:
            checkout: The code to install.
            store_checkout: The code whose image runs the embedded store. Keep it in an upgrade: a store that restarts
                loses its data.
        """
        repository, version = self._load_image(checkout)
        store_repository, store_version = self._load_image(store_checkout or checkout)
        images = {
            f"images.{part}.{key}": value
            for part in ("operator", "agent", "runtime")
            for key, value in (("repository", repository), ("tag", version))
        }
        images |= {"embeddedStore.image.repository": store_repository, "embeddedStore.image.tag": store_version}
        # helm reads a tag of digits only as a number, unless it is set as a string.
        settings = [f"--set-string={key}={value}" for key, value in images.items()]
        settings += ["--set=embeddedStore.enabled=true", f"--set-string=embeddedStore.bucket={BUCKET}"]
        settings += self._exceptions(checkout)
        self.cluster.helm(
            *("upgrade", "--install", RELEASE, checkout / CHART, "--namespace", SYSTEM_NAMESPACE),
            # Another test or an earlier installation may have left the CRD behind.
            *("--take-ownership", "--force-conflicts"),
            *("--create-namespace", "--wait", "--timeout", "180s", *settings),
        )
        secret = self.cluster.get("secret", f"{RELEASE}-store", "-n", SYSTEM_NAMESPACE)
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "aurora-store", "namespace": self.namespace},
                "data": secret["data"],
            }
        )
        if self.cluster.host_address:
            self.cluster.apply(policy_for_this_machine(self.cluster.host_address), namespace=self.namespace)

    def _exceptions(self, checkout: Path) -> list[str]:
        """What the chart refuses and the tests need. The chart of a former version may not know a value."""
        known = yaml.safe_load((checkout / CHART / "values.yaml").read_text())
        wanted = {
            # The pods of a test mount Python packages and the model from the node (small_speculator.py).
            "podTemplates": ("exemptNamespaces", [self.namespace]),
            "metrics": ("scraperNamespaces", self.scraper_namespaces),
        }
        return [
            f"--set-json={section}.{setting}={json.dumps(value)}"
            for section, (setting, value) in wanted.items()
            if setting in known.get(section, {})
        ]

    def rollback(self) -> None:
        """Roll the helm release back to its former revision. Returns when the operator is ready."""
        self.cluster.helm(
            *("rollback", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "180s", "--force-conflicts")
        )

    def _load_image(self, checkout: Path) -> tuple[str, str]:
        """Repository and tag of the image with the code of ``checkout``."""
        tag, archive = local_image(checkout)
        self.cluster.load_image(archive)
        repository, _, version = tag.partition(":")
        return repository, version

    def store(self) -> StoreAccess:
        """The embedded store's endpoint (by ClusterIP) and credentials."""
        service = self.cluster.get("service", f"{RELEASE}-store", "-n", SYSTEM_NAMESPACE)
        data = self.cluster.get("secret", f"{RELEASE}-store", "-n", SYSTEM_NAMESPACE)["data"]
        port = service["spec"]["ports"][0]["port"]
        return StoreAccess(
            f"http://{service['spec']['clusterIP']}:{port}",
            base64.b64decode(data["AWS_ACCESS_KEY_ID"]).decode(),
            base64.b64decode(data["AWS_SECRET_ACCESS_KEY"]).decode(),
        )

    def apply(self, name: str, spec: dict[str, Any] | None = None) -> Path:
        """``kubectl apply -f`` a speculator for SmolLM2, and return the file."""
        resource = small_speculator(
            name,
            model=ensure_model(),
            python=Path((ROOT / ".venv/base").read_text().strip()),
            store={
                "bucket": BUCKET,
                "endpoint": f"http://{RELEASE}-store.{SYSTEM_NAMESPACE}.svc:8333",
                "credentials": {"secretRef": {"name": "aurora-store"}},
            },
            spec=spec,
        )
        file = Path(tempfile.mkdtemp(prefix="aurora-")) / "speculator.json"
        file.write_text(json.dumps(resource, indent=1))
        self.cluster.kubectl("apply", "-n", self.namespace, "-f", file)
        return file

    def get(self, name: str) -> dict[str, Any]:
        """The current state of the custom resource."""
        resource: dict[str, Any] = self.cluster.get(RESOURCE, name, "-n", self.namespace)
        return resource

    def url(self, name: str) -> str:
        """The URL of the Service that clients use (by ClusterIP)."""
        service = self.cluster.get("service", name, "-n", self.namespace)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def root(self, name: str) -> str:
        """The prefix of the speculator's objects in the bucket."""
        return f"aurora/{self.namespace}/{name}"

    def wait_until(
        self, name: str, description: str, condition: Callable[[dict[str, Any]], bool], timeout_seconds: float
    ) -> dict[str, Any]:
        """Poll the resource until ``condition(resource)`` holds, and return the resource.

        Raises:
            TimeoutError: The condition did not hold in time. The message contains the resource's conditions, and the
                end of the log of each container that crashed.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            resource = self.get(name)
            if condition(resource):
                return resource
            if time.monotonic() > deadline:
                conditions = resource.get("status", {}).get("conditions", [])
                texts = "; ".join(f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions)
                raise TimeoutError(
                    f"{name}: timed out after {timeout_seconds:.0f} s: {description}. Conditions: {texts}"
                    + self._logs_of_crashes()
                )
            time.sleep(POLL_SECONDS)

    def _logs_of_crashes(self) -> str:
        """The last lines of each container that crashed, and of what it says since."""
        lines = []
        for pod in self.cluster.get("pods", "-n", self.namespace)["items"]:
            for container in pod.get("status", {}).get("containerStatuses", ()):
                if "terminated" not in container.get("lastState", {}):
                    continue
                selection = (pod["metadata"]["name"], "-c", container["name"], "-n", self.namespace)
                for option in ("--previous=true", "--previous=false"):
                    lines.append(f"\n--- kubectl logs {' '.join(selection)} {option}")
                    with contextlib.suppress(CommandError):  # a log may be gone
                        lines.append(self.cluster.kubectl("logs", *selection, option, f"--tail={LOG_LINES}"))
        return "\n".join(lines)
