"""The operator's process against a real API server and a real S3: takeover of a root, and deletion of stored objects.

The API server has no nodes, so no pod runs. What pods write is written by the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aurora_api.crd import FILE
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.observe.stored_resource import owner_of
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import ROOT_OWNER, SecretKeys
from tests.rig.api_server import ApiServer, api_server, free_ports
from tests.unit.operator.worlds import channel, evidence, lineage, registration, root_owner

BUCKET = "stored-data"
NAMESPACE = "team"
RESOURCE = "auroraspeculator"
TIMEOUT_SECONDS = 90.0


@dataclass
class Rig:
    """An API server, a store, and the operator's process."""

    api: ApiServer
    s3: S3
    log: Path
    operator: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        metrics, liveness = free_ports(2)
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.api.kubeconfig),
            "AURORA_METRICS_PORT": str(metrics),
            "AURORA_HEALTH_PORT": str(liveness),
            "AURORA_WATCH_NAMESPACES": NAMESPACE,
            "AURORA_AGENT_IMAGE": "agent:1",
            "AURORA_RUNTIME_IMAGE": "runtime:1",
        }
        with self.log.open("ab") as log:
            self.operator = subprocess.Popen(
                [sys.executable, "-m", "aurora_operator"], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        if self.operator is not None:
            self.operator.kill()
            self.operator.wait(10)
            self.operator = None

    def create(self, name: str, *, endpoint: str = "", **store: Any) -> None:
        place = {"bucket": BUCKET, "endpoint": endpoint or self.s3.endpoint}
        spec = {
            "target": {"model": "org/model"},
            "draft": {"vocabSize": 256},
            "store": place | {"credentials": {"secretRef": {"name": "s3"}}} | store,
        }
        metadata = {"name": name, "namespace": NAMESPACE}
        self.api.apply(
            {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "metadata": metadata, "spec": spec}
        )

    def resource(self, name: str) -> dict[str, Any] | None:
        items = self.api.get(RESOURCE, "-n", NAMESPACE)["items"]
        return next((item for item in items if item["metadata"]["name"] == name), None)

    def finalizers(self, name: str) -> list[str]:
        return list(((self.resource(name) or {}).get("metadata") or {}).get("finalizers", []))

    def status(self, name: str) -> dict[str, Any]:
        return dict((self.resource(name) or {}).get("status") or {})

    def condition(self, name: str, type_: str) -> tuple[str, str]:
        """Reason and message of a condition."""
        for condition in self.status(name).get("conditions", ()):
            if condition["type"] == type_:
                return condition["reason"], condition["message"]
        return "", ""

    def storage(self, name: str) -> tuple[str, str]:
        return self.condition(name, "StorageReady")

    def active(self, name: str) -> int | None:
        """The active version."""
        return dict(self.status(name).get("active") or {}).get("version")

    def root(self, name: str) -> str:
        return str(self.status(name).get("storeRoot", ""))

    def event(self, reason: str) -> str:
        events = self.api.get("events", "-n", NAMESPACE)["items"]
        return next((str(event["message"]) for event in events if event["reason"] == reason), "")

    def replicas(self, deployment: str) -> int:
        return int(self.api.get("deployment", deployment, "-n", NAMESPACE)["spec"].get("replicas", 1))

    def delete(self, name: str) -> None:
        self.api.kubectl("delete", RESOURCE, name, "-n", NAMESPACE, "--wait=false")

    def store(self, root: str) -> ObjectStore:
        return ObjectStore(self.s3.config(bucket=BUCKET, root=root))

    def train(self, root: str) -> None:
        """Write what the trainer and the first roll leave in the store: version 1 is active."""
        name = root.rpartition("/")[2]
        owner = root_owner(owner_of(self.resource(name) or {}))
        name = f"{name}-keys"
        self.wait("the keys", lambda: name in names(self, "secrets"))
        registry = PodRegistry(self.store(root), SecretKeys(lambda: self.api.get("secret", name, "-n", NAMESPACE)))
        registry.create_lineage(lineage().model_copy(update={"draft_vocab_size": 16}))
        registry.put_evidence(evidence(1))
        for version in range(2):
            registry.register(registration(version))
        registry.advance_channel(channel(0, owner=owner))
        registry.advance_channel(channel(1, epoch=2, previous=0, owner=owner))

    def wait(self, expected: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expected}: not within {TIMEOUT_SECONDS:.0f} s\n{self.log.read_text()[-4000:]}")
            time.sleep(0.3)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    controllers = ("garbage-collector-controller", "serviceaccount-controller", "namespace-controller")
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(api_server(controllers))
        s3 = stack.enter_context(seaweedfs())
        api.kubectl("apply", "--server-side", "-f", FILE)
        api.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": NAMESPACE}}
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        api.apply({**secret, "stringData": s3.environment()})
        made = Rig(api, s3, tmp_path_factory.mktemp("operator") / "log")
        made.start()
        stack.callback(made.kill)
        yield made


def test_a_speculator_that_is_created_again_goes_on_with_the_trained_draft(rig: Rig) -> None:
    """The same YAML, in a cluster that was built anew or after a deletion. Another Secret signs the records."""
    rig.create("again")
    rig.wait("a status", lambda: rig.root("again") == f"aurora/{NAMESPACE}/again")
    rig.train(rig.root("again"))
    rig.wait("the active version", lambda: rig.active("again") == 1)
    former = (rig.resource("again") or {})["metadata"]["uid"]
    rig.delete("again")
    rig.wait("its end", lambda: rig.resource("again") is None)
    rig.wait("the end of its keys", lambda: "again-keys" not in names(rig, "secrets"))

    rig.create("again")
    rig.wait("the takeover", lambda: rig.storage("again")[0] == "Ready")
    assert f"from {NAMESPACE}/again (uid {former[:8]}" in rig.event("Restored")
    rig.wait("the active version", lambda: rig.active("again") == 1)
    rig.wait("its workloads", lambda: {"again", "again-trainer"} <= names(rig, "deployments"))
    rig.delete("again")
    rig.wait("its end", lambda: rig.resource("again") is None)


def test_a_person_gives_a_path_to_another_name_and_the_former_one_says_why_it_stops(rig: Rig) -> None:
    rig.create("old", deletionPolicy="Delete")
    rig.wait("the finalizer", lambda: rig.finalizers("old") == [FINALIZER])
    rig.wait("a status", lambda: rig.root("old") != "")
    root = rig.root("old")
    rig.train(root)
    rig.wait("the active version", lambda: rig.active("old") == 1)

    rig.create("new", path=f"{NAMESPACE}/old")
    rig.wait("the refusal", lambda: rig.storage("new")[0] == "PathRefused")
    assert "aurora.dev/adopt=true" in rig.storage("new")[1]
    assert not {"new", "new-trainer"} & names(rig, "deployments")
    rig.api.kubectl("annotate", RESOURCE, "new", "-n", NAMESPACE, "aurora.dev/adopt=true")
    rig.wait("the takeover", lambda: rig.storage("new")[0] == "Ready")
    rig.wait("the active version", lambda: (rig.resource("new") or {})["status"].get("active", {}).get("version") == 1)
    rig.wait("its workloads", lambda: {"new", "new-trainer"} <= names(rig, "deployments"))
    # At rest a takeover is noticed within minutes, and at once when a person asks for something.
    rig.api.kubectl("annotate", RESOURCE, "old", "-n", NAMESPACE, "aurora.dev/abort=99")
    rig.wait("the former one's refusal", lambda: rig.storage("old")[0] == "TakenOver")
    rig.wait("the end of its trainer", lambda: rig.replicas("old-trainer") == 0)
    assert rig.replicas("old") == 1, "its pods serve on"
    assert f"AuroraSpeculator {NAMESPACE}/new" in rig.storage("old")[1]

    before = sorted(rig.store(root).list(""))
    rig.delete("old")
    rig.wait("the former one's end", lambda: rig.resource("old") is None)
    assert "belongs to AuroraSpeculator team/new" in rig.event("DataKept")
    assert [key for key in before if not key.startswith("probe/")] == [
        key for key in sorted(rig.store(root).list("")) if not key.startswith("probe/")
    ]
    assert rig.finalizers("new") == []


def names(rig: Rig, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in rig.api.get(kind, "-n", NAMESPACE)["items"]}


def test_another_target_takes_no_root_over_and_no_pod_starts(rig: Rig) -> None:
    root = f"aurora/{NAMESPACE}/other"
    registry = PodRegistry(rig.store(root))
    target = lineage().target.model_copy(update={"model": "org/other"})
    registry.create_lineage(lineage().model_copy(update={"target": target}))
    registry.register(registration(0))
    registry.advance_channel(channel(0, owner=ROOT_OWNER.model_copy(update={"name": "other"})))
    rig.create("other")
    rig.wait("the refusal", lambda: rig.storage("other")[0] == "PathRefused")
    assert "another target: org/other" in rig.storage("other")[1]
    assert not {"other", "other-trainer"} & names(rig, "deployments")
    rig.delete("other")
    rig.wait("its end", lambda: rig.resource("other") is None)


def test_a_deletion_deletes_all_objects_despite_a_killed_operator(rig: Rig) -> None:
    rig.create("gone", deletionPolicy="Delete")
    rig.wait("a status", lambda: rig.root("gone") != "")
    root = rig.root("gone")
    rig.train(root)
    store = rig.store(root)
    for number in range(1200):
        store.put(f"traces/00000001/x/{number:05d}.safetensors", b"trace")
    near = rig.store(f"{root}a")
    near.put("traces/x", b"of another speculator")
    rig.wait("its workloads", lambda: {"gone", "gone-trainer"} <= names(rig, "deployments"))
    rig.delete("gone")
    rig.wait("the first deletions", lambda: len(list(store.list(""))) < 1200)
    rig.kill()
    rig.start()
    rig.wait("the end", lambda: rig.resource("gone") is None)
    assert list(store.list("")) == []
    assert list(near.list("")) == ["traces/x"]
    assert "a listing finds no object" in rig.event("DataDeleted")


def test_a_store_that_is_away_does_not_hold_a_speculator_that_retains(rig: Rig) -> None:
    rig.create("away", endpoint="http://127.0.0.1:9", deletionPolicy="Delete")
    rig.wait("the finalizer", lambda: rig.finalizers("away") == [FINALIZER])
    rig.delete("away")
    rig.wait("the condition", lambda: "deletionPolicy" in rig.condition("away", "Ready")[1])
    time.sleep(5)
    assert rig.finalizers("away") == [FINALIZER]
    ready, message = rig.condition("away", "Ready")
    assert ready == "Deleting"
    assert "the operator tries again" in message
    retain = '{"spec":{"store":{"deletionPolicy":"Retain"}}}'
    rig.api.kubectl("patch", RESOURCE, "away", "-n", NAMESPACE, "--type", "merge", "-p", retain)
    rig.wait("the end", lambda: rig.resource("away") is None)


def test_the_finalizer_follows_the_policy_and_others_stay(rig: Rig) -> None:
    rig.create("policy")
    rig.wait("a status", lambda: rig.root("policy") != "")
    assert rig.finalizers("policy") == []
    theirs = '{"metadata":{"finalizers":["example.org/theirs"]}}'
    rig.api.kubectl("patch", RESOURCE, "policy", "-n", NAMESPACE, "--type", "merge", "-p", theirs)
    for policy, expected in (("Delete", {FINALIZER, "example.org/theirs"}), ("Retain", {"example.org/theirs"})):
        patch = json.dumps({"spec": {"store": {"deletionPolicy": policy}}})
        rig.api.kubectl("patch", RESOURCE, "policy", "-n", NAMESPACE, "--type", "merge", "-p", patch)
        rig.wait(policy, lambda expected=expected: set(rig.finalizers("policy")) == expected)  # type: ignore[misc]
    none = '{"metadata":{"finalizers":null}}'
    rig.api.kubectl("patch", RESOURCE, "policy", "-n", NAMESPACE, "--type", "merge", "-p", none)
    rig.delete("policy")
    rig.wait("its end", lambda: rig.resource("policy") is None)


def test_a_finalizer_that_came_with_a_dump_is_removed_although_another_manager_owns_it(rig: Rig) -> None:
    """``kubectl get -o yaml | kubectl create``, or Velero: server-side apply would leave their finalizer."""
    rig.create("dumped")
    rig.wait("a status", lambda: rig.root("dumped") != "")
    dump = rig.resource("dumped")
    assert dump is not None
    rig.delete("dumped")
    rig.wait("its end", lambda: rig.resource("dumped") is None)
    metadata = {"name": "dumped", "namespace": NAMESPACE, "finalizers": [FINALIZER, "example.org/theirs"]}
    rig.api.kubectl("create", "-f", "-", stdin=json.dumps({**dump, "metadata": metadata}))
    rig.wait("the removal", lambda: rig.finalizers("dumped") == ["example.org/theirs"])
    rig.wait("its workloads", lambda: {"dumped", "dumped-trainer"} <= names(rig, "deployments"))
    ours = json.dumps({"metadata": {"finalizers": [FINALIZER]}, "spec": {"store": {"deletionPolicy": "Delete"}}})
    rig.api.kubectl("patch", RESOURCE, "dumped", "-n", NAMESPACE, "--type", "merge", "-p", ours)
    rig.delete("dumped")
    rig.wait("its end", lambda: rig.resource("dumped") is None)


def test_a_store_that_lost_its_records_is_told_and_goes_on_once_they_are_back(rig: Rig) -> None:
    rig.create("lost")
    rig.wait("a status", lambda: rig.root("lost") != "")
    root = rig.root("lost")
    rig.train(root)
    rig.wait("the active version", lambda: rig.active("lost") == 1)
    store = rig.store(root)
    backup = {key: store.get(key) for key in store.list("")}
    for key in backup:
        store.delete(key)
    # The operator reads the store at once after a request.
    rig.api.kubectl("annotate", RESOURCE, "lost", "-n", NAMESPACE, "aurora.dev/abort=7")
    rig.wait("the loss", lambda: rig.storage("lost")[0] == "RecordsLost")
    assert rig.active("lost") == 1
    rig.wait("the trainer's end", lambda: rig.replicas("lost-trainer") == 0)
    assert list(store.list("channel/")) == []

    for key, data in backup.items():
        store.create(key, data)
    rig.wait("the records", lambda: rig.storage("lost")[0] == "Ready")
    assert rig.active("lost") == 1
