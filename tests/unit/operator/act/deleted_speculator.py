"""A fake API server with a speculator that is being deleted, and a fake store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.act import data_deletion
from aurora_operator.act.data_deletion import DataDeletion
from aurora_operator.children.metadata import FINALIZER, INFERENCE, selector
from aurora_operator.children.owner import Owner
from aurora_operator.errors import NamespaceEnds, NotFound
from aurora_operator.kubernetes_api import SPECULATOR, Object, Resource
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.stored_resource import status_of
from aurora_store import StoreConfig
from aurora_store.errors import StoreError
from aurora_store.root.root_deletion import DeletionProgress
from tests.unit.operator.worlds import MINIMAL, OWNER

CONFIG = StoreConfig("bucket", "aurora/team/chat-01234567")


class KilledError(Exception):
    """The operator ends at this call."""


@dataclass
class FakeCluster:
    """A fake API server with a speculator that is being deleted. A real one cannot be stopped at a chosen call."""

    policy: str = "Delete"
    age: timedelta = timedelta(seconds=10)
    finalizers: list[str] = field(default_factory=lambda: [FINALIZER])
    workloads: dict[tuple[str, str], Object] = field(default_factory=dict)
    pods: list[Object] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    kill_at: int | None = None
    serving: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    status_refused: Exception | None = None
    ends: bool = False
    """The namespace is being deleted, too."""

    @property
    def stored(self) -> Object:
        metadata = {
            "namespace": OWNER.namespace,
            "name": OWNER.name,
            "uid": OWNER.uid,
            "generation": 2,
            "resourceVersion": "77",
            "finalizers": self.finalizers,
            "deletionTimestamp": (datetime.now(UTC) - self.age).isoformat(),
        }
        store = MINIMAL["store"] | {"deletionPolicy": self.policy}
        spec = MINIMAL | {"store": store, "serving": self.serving}
        return {"metadata": metadata, "spec": spec, "status": self.status}

    @property
    def ready(self) -> Condition:
        conditions = {condition.type: condition for condition in status_of(self.stored).conditions}
        assert conditions[ConditionType.AVAILABLE].reason == conditions[ConditionType.READY].reason
        return conditions[ConditionType.READY]

    def _call(self, text: str) -> None:
        if len(self.calls) == self.kill_at:
            self.kill_at = None
            raise KilledError
        self.calls.append(text)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._call(f"get {resource.kind}")
        if resource is SPECULATOR:
            return self.stored
        raise NotFound(name, 404)

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        self._call(f"list {resource.kind}")
        return [obj for (kind, _), obj in self.children().items() if kind == resource.kind]

    def children(self) -> dict[tuple[str, str], Object]:
        pods = {("Pod", pod["metadata"]["name"]): {"apiVersion": "v1", "kind": "Pod", **pod} for pod in self.pods}
        return self.workloads | pods

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._call(f"delete {resource.kind} {name}")
        if obj := self.workloads.pop((resource.kind, name), None):
            assert obj["metadata"]["uid"] == uid

    def create(self, obj: Object) -> Object:
        self._call(f"event {obj['reason']}")
        if self.ends:
            raise NamespaceEnds("unable to create new content in namespace team because it is being terminated", 403)
        self.events.append(obj)
        return obj

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        self._call(f"apply {subresource}")
        if self.status_refused is not None:
            raise self.status_refused
        self.status = obj["status"]
        return self.stored

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        self._call("merge status")
        if self.status_refused is not None:
            raise self.status_refused
        self.status = {key: value for key, value in {**self.status, **changes}.items() if value is not None}
        return self.stored

    def set_finalizers(self, obj: Object, finalizers: Sequence[str]) -> Object:
        self._call("set finalizers")
        assert obj["metadata"]["resourceVersion"] == "77"
        self.finalizers = [*finalizers]
        return self.stored


@dataclass
class FakeCache:
    """A cache that knows what the cluster has, unless it is ``behind``."""

    cluster: FakeCluster
    behind: bool = False

    def children(self, namespace: str, name: str) -> dict[tuple[str, str], Object]:
        return {} if self.behind else self.cluster.children()


@dataclass
class FakeStore:
    """Stands for the store's settings and for :class:`RootDeletion`: two steps delete everything."""

    cluster: FakeCluster
    objects: int = 4
    error: str = ""
    config_error: str = ""
    config_reason: str = "SecretMissing"
    reader: Any = None
    finds_no_records: bool = False
    """The settings lead to another store than before."""

    async def config(self, owner: Owner, spec: SpeculatorSpec) -> StoreConfig | StoreView:
        return StoreView(reason=self.config_reason, error=self.config_error) if self.config_error else CONFIG

    def step(self, seconds: float, *, expects_records: bool) -> DeletionProgress:
        self.cluster._call("delete objects")
        if self.finds_no_records:
            return DeletionProgress(done=not expects_records, no_records=expects_records)
        assert not self.cluster.pods, "pods write until they end"
        if self.error:
            raise StoreError(self.error)
        self.objects = max(1 if expects_records else 0, self.objects - 2)
        return DeletionProgress(
            4 - self.objects, 10, done=not self.objects, only_record_left=expects_records and self.objects == 1
        )


def workload(kind: str, name: str, uid: str = OWNER.uid) -> tuple[tuple[str, str], Object]:
    metadata = {"name": name, "uid": f"uid-{name}", "ownerReferences": [{"uid": uid, "controller": True}]}
    return (kind, name), {"kind": kind, "metadata": metadata}


def inference_pod(replica_set: str) -> Object:
    """A pod with the labels of the speculator's inference pods."""
    references = [{"kind": "ReplicaSet", "name": replica_set, "uid": replica_set, "controller": True}]
    labels = selector(OWNER, INFERENCE) | {"pod-template-hash": "1a"}
    return {"metadata": {"name": "a", "labels": labels, "ownerReferences": references}, "status": {"phase": "Running"}}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster(pods=[inference_pod("chat-1a")])
    made.workloads = dict(
        [
            workload("Deployment", "chat"),
            workload("Deployment", "chat-trainer"),
            workload("Job", "chat-validate-v1-1"),
            workload("Deployment", "another", "uid-of-another"),
        ]
    )
    return made


def deletion(cluster: FakeCluster, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> DataDeletion:
    monkeypatch.setattr(data_deletion, "RootDeletion", lambda objects, owner: store)
    monkeypatch.setattr(data_deletion, "DeletableObjects", lambda config, **options: None)
    return DataDeletion(cast(Any, cluster), cast(Any, FakeCache(cluster)), cast(Any, store), lambda: None)


async def run(cluster: FakeCluster, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance until the finalizer is gone. A kill brings another operator. Pods end after their workloads."""
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(30):
        try:
            await operator.advance(cluster.stored)
        except NotFound:
            return
        except KilledError:
            operator = deletion(cluster, store, monkeypatch)
        if len(cluster.workloads) == 1:
            cluster.pods = []
    raise AssertionError("the finalizer stays")
