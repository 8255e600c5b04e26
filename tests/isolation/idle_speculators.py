"""Speculators without pods: no replicas and no training, so that dozens of them fit on this machine."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from tests.cluster.command import CommandError, wait_until
from tests.rig.installation import BUCKET, RELEASE, RESOURCE, SYSTEM_NAMESPACE, Installation

GOOD_ENDPOINT = f"http://{RELEASE}-store.{SYSTEM_NAMESPACE}.svc:8333"


def manifest(name: str, endpoint: str = GOOD_ENDPOINT) -> dict[str, Any]:
    """A speculator that is suspended at zero replicas."""
    return {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": name},
        "spec": {
            "target": {"model": "example/target"},
            "store": {
                "bucket": BUCKET,
                "endpoint": endpoint,
                "credentials": {"secretRef": {"name": "aurora-store"}},
            },
            "serving": {"replicas": 0},
            "training": {"suspended": True},
        },
    }


@dataclass(frozen=True)
class IdleSpeculators:
    """The calls that these tests make on the cluster."""

    aurora: Installation

    def apply(self, *names: str, endpoint: str = GOOD_ENDPOINT) -> None:
        """Create speculators, or give them another endpoint."""
        self.aurora.cluster.apply(*(manifest(name, endpoint) for name in names), namespace=self.aurora.namespace)

    def delete(self, *names: str) -> None:
        """Delete speculators, and wait until they are gone."""
        arguments = ("-n", self.aurora.namespace, "--ignore-not-found", "--timeout=120s")
        self.aurora.cluster.kubectl("delete", RESOURCE, *names, *arguments, timeout_seconds=180)

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of the speculator; empty when there is none."""
        conditions = self.aurora.get(name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def child(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object in the speculators' namespace; None when it does not exist."""
        try:
            found: dict[str, Any] = self.aurora.cluster.get(kind, name, "-n", self.aurora.namespace)
        except CommandError as error:
            if "NotFound" in str(error):
                return None
            raise
        return found

    def seconds_until_applied(self, name: str, timeout_seconds: float) -> float:
        """Change the spec, and return the seconds until the Deployment shows the change."""
        value = str(time.time_ns())
        template = {"spec": {"serving": {"template": {"metadata": {"annotations": {"test": value}}}}}}
        started = time.monotonic()
        self.aurora.cluster.kubectl(
            *("patch", RESOURCE, name, "-n", self.aurora.namespace, "--type=merge", "-p", json.dumps(template))
        )

        def applied() -> bool:
            deployment = self.child("deployment", name) or {}
            metadata = deployment.get("spec", {}).get("template", {}).get("metadata", {})
            return bool(metadata.get("annotations", {}).get("test") == value)

        wait_until(f"the Deployment of {name} shows the changed spec", applied, timeout_seconds)
        return time.monotonic() - started
