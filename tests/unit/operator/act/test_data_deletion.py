"""Deleting a speculator with ``deletionPolicy: Delete``: pods first, then objects, then the finalizer.

The API server is a fake that ends the operator at a chosen call. The objects lie in a fake store in memory, because the
store's own behaviour is tested on a real S3 (``tests/integration/store/test_root_deletion.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.act import data_deletion
from aurora_operator.act.data_deletion import BUSY_DELAY_SECONDS, RETRY_DELAY_SECONDS, DataDeletion
from aurora_operator.children.metadata import FINALIZER, INFERENCE, selector
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError, NamespaceEnds, NotFound
from aurora_operator.kubernetes_api import SPECULATOR, Object, Resource, refusal
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.stored_resource import status_of
from aurora_operator.plan.data_deletion import IN_PROGRESS
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
        return self.workloads | {("Pod", pod["metadata"]["name"]): {"kind": "Pod", **pod} for pod in self.pods}

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

    async def config(self, owner: Owner, spec: SpeculatorSpec) -> StoreConfig | StoreView:
        return StoreView(reason=self.config_reason, error=self.config_error) if self.config_error else CONFIG

    def step(self, seconds: float) -> DeletionProgress:
        self.cluster._call("delete objects")
        assert not self.cluster.pods, "pods write until they end"
        if self.error:
            raise StoreError(self.error)
        self.objects = max(0, self.objects - 2)
        return DeletionProgress(4 - self.objects, 10, done=not self.objects)


def workload(kind: str, name: str, uid: str = OWNER.uid) -> tuple[tuple[str, str], Object]:
    metadata = {"name": name, "uid": f"uid-{name}", "ownerReferences": [{"uid": uid, "controller": True}]}
    return (kind, name), {"kind": kind, "metadata": metadata}


def inference_pod(replica_set: str) -> Object:
    """A pod with the labels of the speculator's inference pods."""
    references = [{"kind": "ReplicaSet", "name": replica_set, "uid": replica_set, "controller": True}]
    labels = selector(OWNER, INFERENCE) | {"pod-template-hash": "1a"}
    return {"metadata": {"name": "a", "labels": labels, "ownerReferences": references}, "status": {"phase": "Running"}}


@pytest.fixture(name="cluster")
def _cluster() -> FakeCluster:
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
    monkeypatch.setattr(data_deletion, "ObjectStore", lambda config, **options: None)
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


async def test_the_order_is_workloads_pods_objects_event_finalizer(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(cluster, FakeStore(cluster), monkeypatch)
    assert [call for call in cluster.calls if not call.startswith(("list", "get"))] == [
        "apply status",
        "delete Deployment chat",
        "delete Deployment chat-trainer",
        "delete Job chat-validate-v1-1",
        "delete objects",
        "delete objects",
        "event DataDeleted",
        "set finalizers",
    ]
    assert list(cluster.workloads) == [("Deployment", "another")], "only our own"
    assert cluster.events[0]["message"].startswith("Deleted 4 objects")
    assert cluster.finalizers == []


async def test_a_fault_outside_of_the_store_does_not_hold_up_the_deletion(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.serving = {"extraArgs": ["--no-such-flag"], "replicas": "many"}
    store = FakeStore(cluster)
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 0)


async def test_a_deletion_goes_on_after_a_kill_at_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeCluster(workloads=dict([workload("Deployment", "chat"), workload("Deployment", "x", "another")]))
    await run(whole, FakeStore(whole), monkeypatch)
    for kill_at in range(len(whole.calls)):
        again = FakeCluster(
            kill_at=kill_at,
            workloads=dict([workload("Deployment", "chat"), workload("Deployment", "x", "another")]),
        )
        store = FakeStore(again)
        await run(again, store, monkeypatch)
        assert (again.finalizers, store.objects) == ([], 0)


async def test_without_our_finalizer_there_is_nothing_to_do(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.finalizers = ["another.example/finalizer"]
    with pytest.raises(NotFound):
        await deletion(cluster, FakeStore(cluster), monkeypatch).advance(cluster.stored)
    assert cluster.calls == []


async def test_retain_lets_the_speculator_go_at_once_and_keeps_the_objects(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore(cluster, error="no route")
    cluster.policy = "Retain"
    await run(cluster, store, monkeypatch)
    assert store.objects == 4
    assert cluster.workloads.keys() >= {("Deployment", "chat")}, "garbage collection deletes the children"


@pytest.mark.parametrize("fault", ["error", "config_error"])
async def test_a_store_that_cannot_be_used_is_reported_with_the_way_out(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster()
    store = FakeStore(cluster)
    setattr(store, fault, "the store is away")
    operator = deletion(cluster, store, monkeypatch)
    assert await operator.advance(cluster.stored) == 0
    assert (cluster.ready.status, cluster.ready.reason) == (ConditionStatus.FALSE, "Deleting")
    assert cluster.ready.message == IN_PROGRESS
    assert await operator.advance(cluster.stored) == RETRY_DELAY_SECONDS
    assert cluster.events == [], "an outage of a few minutes is not worth a warning"
    assert "the store is away" in cluster.ready.message
    assert "kubectl patch auroraspeculator chat" in cluster.ready.message
    cluster.age = timedelta(minutes=6)
    await operator.advance(cluster.stored)
    (event,) = cluster.events
    assert event["type"] == "Warning"
    assert "the store is away" in event["message"]
    assert "kubectl patch auroraspeculator chat" in event["message"]
    assert cluster.finalizers == [FINALIZER]
    store.error = store.config_error = ""
    assert await operator.advance(cluster.stored) == BUSY_DELAY_SECONDS
    assert await operator.advance(cluster.stored) == 0
    assert cluster.ready.message == IN_PROGRESS
    assert cluster.calls.count("apply status") == 3, "nothing is written while nothing changes"


async def test_a_secret_that_is_deleted_with_the_speculator_does_not_stop_the_deletion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = FakeCluster()

    class Reader:
        config = CONFIG

    store = FakeStore(cluster, config_error="create the Secret s3", reader=Reader())
    await run(cluster, store, monkeypatch)
    assert store.objects == 0


@pytest.mark.parametrize("reason", ["SecretMissing", "SecretForbidden"])
async def test_a_namespace_that_ends_without_the_stores_keys_lets_the_speculator_go_and_keeps_the_objects(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = FakeCluster(ends=True, age=timedelta(minutes=6))
    store = FakeStore(cluster, config_error="create the Secret s3", config_reason=reason)
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 4)
    assert "the objects below s3://bucket are kept: the namespace is being deleted" in caplog.text


def test_the_api_servers_refusal_tells_that_the_namespace_ends() -> None:
    """The answer of Kubernetes' admission plugin NamespaceLifecycle."""
    cause = {"reason": "NamespaceTerminating", "message": "namespace team is being terminated"}
    answer = {"message": "forbidden", "code": 403, "details": {"kind": "events", "causes": [cause]}}
    assert isinstance(refusal("POST events", 403, json.dumps(answer).encode()), NamespaceEnds)
    others: tuple[object, ...] = (
        {"message": "no right", "details": {"kind": "events"}},
        {"message": "x", "details": None},
        [],
    )
    for other in others:
        assert type(refusal("POST events", 403, json.dumps(other).encode())) is KubernetesError


async def test_a_namespace_that_ends_waits_for_a_store_whose_keys_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(ends=True, age=timedelta(minutes=6))
    store = FakeStore(cluster, error="the store is away")
    operator = deletion(cluster, store, monkeypatch)
    await operator.advance(cluster.stored)
    assert await operator.advance(cluster.stored) == RETRY_DELAY_SECONDS
    store.error, store.config_error = "", "create the Secret s3"
    assert cluster.finalizers == [FINALIZER]
    for _ in range(9):
        if cluster.finalizers:
            await operator.advance(cluster.stored)
    assert (cluster.finalizers, store.objects) == ([], 0), "the operator remembers the keys"


@pytest.mark.parametrize(
    ("ends", "minutes"),
    [pytest.param(False, 6, id="the namespace stays"), pytest.param(True, 1, id="the namespace has just begun to end")],
)
async def test_a_missing_secret_that_may_come_is_waited_for(
    *, ends: bool, minutes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster(ends=ends, age=timedelta(minutes=minutes))
    operator = deletion(cluster, FakeStore(cluster, config_error="create the Secret s3"), monkeypatch)
    for _ in range(5):
        await operator.advance(cluster.stored)
    assert cluster.finalizers == [FINALIZER]


async def test_a_refused_status_does_not_hold_up_the_deletion(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(status_refused=KubernetesError("denied", 403))
    store = FakeStore(cluster)
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 0)
    cluster = FakeCluster(status_refused=Conflict("moved on", 409))
    with pytest.raises(Conflict):
        await deletion(cluster, store, monkeypatch).advance(cluster.stored)


async def test_a_spec_whose_store_cannot_be_read_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    stored = cluster.stored
    stored["spec"]["store"] = {"deletionPolicy": "Delete", "bucket": 7}
    operator = deletion(cluster, FakeStore(cluster), monkeypatch)
    assert await operator.advance(stored) == 0
    assert await operator.advance({**stored, "status": cluster.status}) == RETRY_DELAY_SECONDS
    assert "store.bucket" in cluster.ready.message


async def test_a_pod_that_only_carries_the_labels_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(pods=[inference_pod("shop-1a")])
    store = FakeStore(cluster)
    monkeypatch.setattr(store, "step", lambda seconds: DeletionProgress(4, 10, done=True))
    await run(cluster, store, monkeypatch)


async def test_a_pod_on_a_lost_node_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(pods=[inference_pod("chat-1a")])
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(3):
        await operator.advance(cluster.stored)
    assert store.objects == 4
    cluster.age = timedelta(minutes=11)
    monkeypatch.setattr(store, "step", lambda seconds: DeletionProgress(4, 10, done=True))
    await operator.advance(cluster.stored)
    assert cluster.finalizers == []
