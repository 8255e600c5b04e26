"""Aurora installed on a cluster with helm, the embedded S3 store included, and the calls a user would make on it."""

from __future__ import annotations

import base64
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.assets.model import ensure_model
from tests.cluster.cluster import Cluster
from tests.rig.local_image import ROOT, local_image
from tests.rig.small_speculator import speculator

SYSTEM = "aurora-system"
RELEASE = "aurora"
RESOURCE = "auroraspeculators.aurora.dev"
BUCKET = "aurora"


@dataclass(frozen=True)
class Store:
    """The embedded store as seen from this machine."""

    endpoint: str
    access_key: str
    secret_key: str


class Installation:
    """One helm release and what was applied beside it, in one namespace for speculators."""

    def __init__(self, cluster: Cluster, namespace: str = "default") -> None:
        self.cluster = cluster
        self.namespace = namespace

    def install(self) -> None:
        """Load the image and install (or upgrade) the chart; returns when the operator and the store are ready."""
        tag, archive = local_image()
        self.cluster.load_image(archive)
        repository, _, version = tag.partition(":")
        images = {
            f"images.{part}.{key}": value
            for part in ("operator", "agent", "runtime")
            for key, value in (("repository", repository), ("tag", version))
        }
        embedded = {"embeddedStore.enabled": "true", "embeddedStore.bucket": BUCKET}
        embedded |= {"embeddedStore.image.repository": repository, "embeddedStore.image.tag": version}
        settings = [f"--set-string={key}={value}" for key, value in images.items()]
        settings += [f"--set={key}={value}" for key, value in embedded.items()]
        self.cluster.helm(
            *("upgrade", "--install", RELEASE, ROOT / "charts/aurora-operator", "--namespace", SYSTEM),
            # Another test, or an earlier installation, may have left the resource's definition behind.
            *("--take-ownership", "--force-conflicts"),
            *("--create-namespace", "--wait", "--timeout", "180s", *settings),
        )
        secret = self.cluster.get("secret", f"{RELEASE}-store", "-n", SYSTEM)
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "aurora-store", "namespace": self.namespace},
                "data": secret["data"],
            }
        )

    def store(self) -> Store:
        """The embedded store's endpoint by its ClusterIP, and its credentials."""
        service = self.cluster.get("service", f"{RELEASE}-store", "-n", SYSTEM)
        data = self.cluster.get("secret", f"{RELEASE}-store", "-n", SYSTEM)["data"]
        port = service["spec"]["ports"][0]["port"]
        return Store(
            f"http://{service['spec']['clusterIP']}:{port}",
            base64.b64decode(data["AWS_ACCESS_KEY_ID"]).decode(),
            base64.b64decode(data["AWS_SECRET_ACCESS_KEY"]).decode(),
        )

    def apply(self, name: str, spec: dict[str, Any] | None = None) -> Path:
        """``kubectl apply -f`` a speculator for SmolLM2; returns the file."""
        resource = speculator(
            name,
            model=ensure_model(),
            python=Path((ROOT / ".venv/base").read_text().strip()),
            store={
                "bucket": BUCKET,
                "endpoint": f"http://{RELEASE}-store.{SYSTEM}.svc:8333",
                "credentials": {"secretRef": {"name": "aurora-store"}},
            },
            spec=spec,
        )
        file = Path(tempfile.mkdtemp(prefix="aurora-")) / "speculator.json"
        file.write_text(json.dumps(resource, indent=1))
        self.cluster.kubectl("apply", "-n", self.namespace, "-f", file)
        return file

    def get(self, name: str) -> dict[str, Any]:
        """The custom resource as it is now."""
        found: dict[str, Any] = self.cluster.get(RESOURCE, name, "-n", self.namespace)
        return found

    def url(self, name: str) -> str:
        """The Service that clients use, by its ClusterIP."""
        service = self.cluster.get("service", name, "-n", self.namespace)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def pods(self, name: str, component: str) -> list[dict[str, Any]]:
        """Pods of a speculator that are not being deleted."""
        selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component={component}"
        pods: list[dict[str, Any]] = self.cluster.get("pods", "-n", self.namespace, "-l", selector)["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def root(self, name: str) -> str:
        """The speculator's root in the bucket."""
        uid = self.get(name)["metadata"]["uid"]
        return f"aurora/{self.namespace}/{name}-{uid[:8]}"

    def wait(self, name: str, what: str, true: Callable[[dict[str, Any]], bool], timeout: float) -> dict[str, Any]:
        """Poll the resource until ``true(resource)``; raise TimeoutError with its conditions otherwise."""
        deadline = time.monotonic() + timeout
        while True:
            resource = self.get(name)
            if true(resource):
                return resource
            if time.monotonic() > deadline:
                conditions = resource.get("status", {}).get("conditions", [])
                told = "; ".join(f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions)
                raise TimeoutError(f"{what}: not within {timeout:.0f} s. {told}")
            time.sleep(2)
