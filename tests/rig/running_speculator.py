"""A speculator on a real cluster as tests see it: its status, its pods and its store, and what they can do to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import POD, SPECULATOR
from aurora_protocol.draft_records import CheckpointManifest, FileRef, Registration
from aurora_runtime.pod_registry import PodRegistry
from aurora_store.objects import sha256_file
from tests.rig.fault_injection import OPERATOR_SELECTOR
from tests.rig.installation import RESOURCE, SYSTEM_NAMESPACE, Installation
from tests.rig.store_inspection import registry
from tests.rig.sync_api import SyncApi

POLL_SECONDS = 0.05
STEP_TIMEOUT_SECONDS = 900.0
"""Longer than any step of a draft's life, faults included, on a machine four times slower than the usual two cores."""
EXPECTED_PODS = 2 + 1 + 2 + 1
"""Two inference pods, the trainer, two pods of the operator, and the store."""

Resource = dict[str, Any]


def _rollout_state(status: Resource) -> str:
    """The phase of the rollout, with Canary and Watching for the two parts of Judging, and RollingBack while pods of an
    ended roll return."""
    rollout, active = status.get("rollout", {}), (status.get("active") or {}).get("version")
    phase, version = str(rollout.get("phase", "Idle")), rollout.get("version")
    if phase == "Judging":
        return "Watching" if version == active else "Canary"
    returning = version != active and any(pod.get("version") == version for pod in status.get("pods", []))
    return "RollingBack" if phase == "Idle" and version is not None and returning else phase


@dataclass
class RunningSpeculator:
    """A speculator with two inference pods."""

    aurora: Installation
    kube: SyncApi
    """A direct client, for polling twenty times a second. Polling with kubectl would take CPU from the cluster."""
    name: str

    # drafts ----------------------------------------------------------------------------------------------------------

    @property
    def registry(self) -> PodRegistry:
        return registry(self.aurora, self.name)

    def offer(
        self, draft: Path, lineage: int | None = None, damage: Callable[[str], None] = lambda checkpoint: None
    ) -> int:
        """Publish a draft as the next version, as the trainer does.

        Args:
            lineage: The lineage that the manifest claims. Default: the newest.
            damage: Called with the checkpoint's key when the checkpoint is in the store and the version is not yet
                registered.

        Returns:
            The number of the version.
        """
        store = self.registry
        newest_lineage = store.lineage()
        assert newest_lineage is not None
        version = (store.last_version() or 0) + 1
        files = tuple(
            FileRef(name=path.name, sha256=sha256_file(path), size=path.stat().st_size)
            for path in sorted(draft.iterdir())
        )
        manifest = CheckpointManifest(
            lineage=lineage or newest_lineage.number,
            version=version,
            digest=next(file.sha256 for file in files if file.name == "model.safetensors"),
            files=files,
            step=0,
            trained_tokens=0,
            created=datetime.now(UTC),
        )
        checkpoint = store.put_checkpoint(manifest, draft)
        damage(checkpoint)
        registration = Registration(
            version=version,
            lineage=manifest.lineage,
            checkpoint=checkpoint,
            digest=manifest.digest,
            trained_tokens=0,
            created=manifest.created,
        )
        store.register(registration)
        return version

    # state -----------------------------------------------------------------------------------------------------------

    def status(self) -> Resource:
        status: Resource = self.kube.get(SPECULATOR, self.aurora.namespace, self.name).get("status", {})
        return status

    def state(self) -> str:
        """The state of the rollout, or ``Validating`` while a candidate is measured and nothing is rolled out."""
        status = self.status()
        state = _rollout_state(status)
        candidate = str((status.get("candidate") or {}).get("phase", state))
        return candidate if state == "Idle" and candidate == "Validating" else state

    def candidate_phase(self, version: int) -> str:
        """The phase of the candidate ``version``; empty when another version or none is the candidate."""
        candidate = self.status().get("candidate") or {}
        return str(candidate["phase"]) if candidate.get("version") == version else ""

    def rollout_phase(self, version: int) -> str:
        """The state of the rollout of ``version``; empty without one, and until the canary pod has the version."""
        status = self.status()
        state, rollout = _rollout_state(status), status["rollout"]
        has_begun = state != "Canary" or rollout.get("updated", 0) > 0
        return state if rollout.get("version") == version and has_begun else ""

    def is_active(self, version: int) -> bool:
        return bool(self.status()["active"]["version"] == version)

    def pods(self) -> list[Resource]:
        """Pods of the inference Deployment, the trainer, the operator's pods and the store, but not those of Jobs."""
        return [
            *self.component_pods("inference"),
            *self.component_pods("trainer"),
            *self._list_pods(SYSTEM_NAMESPACE),
        ]

    def component_pods(self, component: str) -> list[Resource]:
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        return self._list_pods(self.aurora.namespace, labels)

    def operator_pods(self) -> list[Resource]:
        return self._list_pods(SYSTEM_NAMESPACE, OPERATOR_SELECTOR)

    def store_pod(self) -> Resource:
        (pod,) = (pod for pod in self.pods() if pod["metadata"]["name"].startswith("aurora-store"))
        return pod

    def _list_pods(self, namespace: str, labels: str = "") -> list[Resource]:
        pods = self.kube.list(POD, namespace, labels)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def is_healthy(self) -> bool:
        """Whether every pod is ready and the operator reports Ready."""
        pods = self.pods()
        operator_reports_ready = _is_ready(self.status().get("conditions", []))
        pods_ready = [_is_ready(pod["status"].get("conditions", [])) for pod in pods]
        return len(pods) == EXPECTED_PODS and all(pods_ready) and operator_reports_ready

    def serves(self, version: int) -> bool:
        """Whether ``version`` is active, both pods serve it, and no rollout is going on."""
        status = self.status()
        settled = status["rollout"]["phase"] == "Idle" and status["active"]["version"] == version
        return settled and [pod.get("version") for pod in status["pods"]] == [version, version]

    # waiting ---------------------------------------------------------------------------------------------------------

    def wait_until(
        self, description: str, condition: Callable[[], bool], timeout_seconds: float = STEP_TIMEOUT_SECONDS
    ) -> float:
        """Poll until the condition holds, and return the seconds that it took.

        Raises:
            TimeoutError: The condition did not hold in time. The message contains the status.
        """
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout_seconds:
                status = self.status()
                conditions = [f"{c['type']}={c['status']} {c['message']}" for c in status.get("conditions", [])]
                raise TimeoutError(
                    f"timed out after {timeout_seconds:.0f} s: {description}. "
                    f"Conditions: {'; '.join(conditions)}. {status}"
                )
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def wait_until_serving(self, version: int) -> float:
        """Wait until ``version`` is active, every pod serves it, and no rollout is going on."""
        return self.wait_until(f"every pod serves version {version}", lambda: self.serves(version))

    # a user's changes ------------------------------------------------------------------------------------------------

    def annotate(self, request: str, version: int) -> None:
        """Make a request about a version by annotation, as a user does."""
        annotation = f"aurora.dev/{request}={version}"
        self._kubectl("annotate", annotation, "--overwrite")

    def patch(self, spec: dict[str, Any]) -> None:
        """Merge ``spec`` into the resource's spec."""
        patch = json.dumps({"spec": spec})
        self._kubectl("patch", "--type=merge", "-p", patch)

    def evict(self, pod: str, namespace: str = "") -> bool:
        """Evict a pod through the API that drains use. Returns False while a disruption budget forbids it.

        A pod that has ended meanwhile counts as evicted.
        """
        namespace = namespace or self.aurora.namespace
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        try:
            self.kube.call("POST", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", eviction)
        except KubernetesError as error:
            if error.status not in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.NOT_FOUND):
                raise
            return error.status == HTTPStatus.NOT_FOUND
        return True

    def _kubectl(self, verb: str, *arguments: str) -> None:
        self.aurora.cluster.kubectl(verb, RESOURCE, self.name, "-n", self.aurora.namespace, *arguments)


def _is_ready(conditions: list[Resource]) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
