"""The stage on which faults are played: one speculator under traffic, drafts to offer, and eyes to see with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aurora_operator.kubernetes_api import POD, SPECULATOR, HttpKubernetesApi
from aurora_protocol.draft_records import CheckpointManifest, FileRef
from aurora_runtime.training.lineage import publish
from aurora_store import Registry
from aurora_store.objects import sha256_file
from tests.faults.results_table import Entry
from tests.rig.fault_injection import OPERATOR_SELECTOR
from tests.rig.installation import RESOURCE, SYSTEM, Installation
from tests.rig.store_inspection import registry
from tests.traffic.driver import Driver
from tests.traffic.prompts import Domain

NAME = "faults"
POLL_S = 0.05
STEP_SECONDS = 900.0
"""No step of a draft's life takes longer than this, faults included, on a machine four times slower than another."""
SPEC: dict[str, Any] = {
    "training": {"publishTokens": 1_000_000_000, "publishSeconds": 1_000_000_000},
    "validation": {"minRounds": 3, "maxRounds": 8, "maxNewTokens": 32},
    "rollout": {"analysis": {"watchSeconds": 120}},
}
"""The trainer learns on and offers nothing by itself: which draft is offered when is the tests' choice."""

Resource = dict[str, Any]


@dataclass
class Stage:
    """One speculator named :data:`NAME`."""

    aurora: Installation
    kube: HttpKubernetesApi
    """Looks twenty times a second, which kubectl could not without taking the cores from what is looked at."""
    driver: Driver
    specialists: dict[Domain, Path]
    """Drafts that know one domain each."""
    scratch: Path
    entries: list[Entry] = field(default_factory=list)

    # drafts ----------------------------------------------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        return registry(self.aurora, NAME)

    def offer(
        self, draft: Path, lineage: int | None = None, damage: Callable[[str], None] = lambda checkpoint: None
    ) -> int:
        """Publish a draft as the next version, as the trainer does; returns its number. ``damage`` is done to the
        checkpoint at its key once it lies in the store, and before anyone knows of the version."""
        store = self.registry
        found = store.lineage()
        assert found is not None
        version = (store.last_version() or 0) + 1
        files = tuple(
            FileRef(name=path.name, sha256=sha256_file(path), size=path.stat().st_size)
            for path in sorted(draft.iterdir())
        )
        manifest = CheckpointManifest(
            lineage=lineage or found.number,
            version=version,
            digest=next(file.sha256 for file in files if file.name == "model.safetensors"),
            files=files,
            step=0,
            trained_tokens=0,
            created=datetime.now(UTC),
        )
        damage(store.put_checkpoint(manifest, draft))
        publish(store, draft, manifest)
        return version

    # what is there ---------------------------------------------------------------------------------------------------

    def status(self) -> Resource:
        found: Resource = self.kube.get(SPECULATOR, self.aurora.namespace, NAME).get("status", {})
        return found

    def state(self) -> str:
        """Where the draft's life stands: the rollout's phase, or the candidate's while nothing is rolled out."""
        status = self.status()
        phase = str(status.get("rollout", {}).get("phase", "Idle"))
        candidate = str((status.get("candidate") or {}).get("phase", phase))
        return candidate if phase == "Idle" and candidate == "Validating" else phase

    def candidate(self, version: int) -> str:
        """The phase of ``version`` as a candidate; empty when it is none."""
        found = self.status().get("candidate") or {}
        return str(found["phase"]) if found.get("version") == version else ""

    def pods(self) -> list[Resource]:
        """Pods of the speculator's Deployment and StatefulSet, the operator and the store; no Jobs."""
        return [*self.component("inference"), *self.component("trainer"), *self._list(SYSTEM)]

    def component(self, component: str) -> list[Resource]:
        labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component={component}"
        return self._list(self.aurora.namespace, labels)

    def operator_pods(self) -> list[Resource]:
        return self._list(SYSTEM, OPERATOR_SELECTOR)

    def _list(self, namespace: str, labels: str = "") -> list[Resource]:
        found = self.kube.list(POD, namespace, labels)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def store_pod(self) -> Resource:
        (pod,) = (pod for pod in self.pods() if pod["metadata"]["name"].startswith("aurora-store"))
        return pod

    def whole(self) -> bool:
        """Every part runs and the operator says so."""
        pods = self.pods()
        ready = [any(c["type"] == "Ready" and c["status"] == "True" for c in _conditions(pod)) for pod in pods]
        said = any(c["type"] == "Ready" and c["status"] == "True" for c in self.status().get("conditions", []))
        return len(pods) == 2 + 1 + 2 and all(ready) and said

    # time ------------------------------------------------------------------------------------------------------------

    def wait(self, what: str, true: Callable[[], bool], seconds: float = STEP_SECONDS) -> float:
        """Poll until ``true()``; the seconds it took. TimeoutError, with the status, otherwise."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > seconds:
                told = [f"{c['type']}={c['status']} {c['message']}" for c in self.status().get("conditions", [])]
                raise TimeoutError(f"{what}: not within {seconds:.0f} s; {'; '.join(told)}; {self.status()}")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def wait_active(self, version: int) -> float:
        """Until every pod serves ``version``, it is active, and nothing is under way."""
        return self.wait(f"version {version} everywhere", lambda: self.serves(version))

    def serves(self, version: int) -> bool:
        status = self.status()
        calm = status["rollout"]["phase"] == "Idle" and status["active"]["version"] == version
        return calm and [pod.get("version") for pod in status["pods"]] == [version, version]

    def annotate(self, wish: str, version: int) -> None:
        """What a person asks for by annotation."""
        words = ("annotate", RESOURCE, NAME, f"aurora.dev/{wish}={version}", "--overwrite")
        self.aurora.cluster.kubectl(*words, "-n", self.aurora.namespace)

    def patch(self, spec: dict[str, Any]) -> None:
        words = ("patch", RESOURCE, NAME, "--type=merge", "-p", json.dumps({"spec": spec}))
        self.aurora.cluster.kubectl(*words, "-n", self.aurora.namespace)


def _conditions(pod: Resource) -> list[Resource]:
    found: list[Resource] = pod["status"].get("conditions", [])
    return found
