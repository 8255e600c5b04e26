"""Deleting a speculator with ``deletionPolicy: Delete``: pods first, then objects, then the finalizer.

The API server is a fake that ends the operator at a chosen call. The objects lie in a fake store in memory, because the
store's own behaviour is tested on a real S3 (``tests/integration/store/test_root_deletion.py``).
"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from aurora_api.v1alpha1.conditions import ConditionStatus
from aurora_operator.act.data_deletion import BUSY_DELAY_SECONDS, RETRY_DELAY_SECONDS
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict, KubernetesError, NamespaceEnds, NotFound
from aurora_operator.kubernetes_api import refusal
from aurora_operator.plan.data_deletion import IN_PROGRESS
from aurora_store.root.root_deletion import DeletionProgress
from tests.unit.operator.act.deleted_speculator import (
    CONFIG,
    FakeCluster,
    FakeStore,
    cluster,
    deletion,
    inference_pod,
    run,
    workload,
)

__all__ = ["cluster"]


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
    monkeypatch.setattr(store, "step", lambda seconds, **_: DeletionProgress(4, 10, done=True))
    await run(cluster, store, monkeypatch)


async def test_a_pod_on_a_lost_node_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(pods=[inference_pod("chat-1a")])
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(3):
        await operator.advance(cluster.stored)
    assert store.objects == 4
    cluster.age = timedelta(minutes=11)
    monkeypatch.setattr(store, "step", lambda seconds, **_: DeletionProgress(4, 10, done=True))
    await operator.advance(cluster.stored)
    assert cluster.finalizers == []
