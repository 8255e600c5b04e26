"""A deletion that the API server blocks: it keeps a workload, or our finalizer. The status says so at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from aurora_operator.act.data_deletion import BUSY_DELAY_SECONDS, RETRY_DELAY_SECONDS
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict, KubernetesError, NotFound, NotLeading
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.plan.data_deletion import IN_PROGRESS
from tests.unit.operator.act.deleted_speculator import FakeCluster, FakeStore, cluster, deletion

__all__ = ["cluster"]

DENIED = KubernetesError("ValidatingAdmissionPolicy 'keep' denied request: " + "x" * 4096, 422)
RETAIN = """chat -n team --type merge -p '{"spec":{"store":{"deletionPolicy":"Retain"}}}'"""


def keep_workload(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    delete = cluster.delete

    def refuse(resource: Resource, namespace: str, name: str, uid: str) -> None:
        if resource.kind == "Deployment":
            raise error
        delete(resource, namespace, name, uid)

    monkeypatch.setattr(cluster, "delete", refuse)


def keep_finalizer(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(obj: Object, finalizers: Sequence[str]) -> Object:
        raise error

    monkeypatch.setattr(cluster, "set_finalizers", refuse)


async def test_a_workload_that_may_not_be_deleted_is_reported_with_the_way_out(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore(cluster)
    with monkeypatch.context() as blocked:
        keep_workload(cluster, blocked, DENIED)
        operator = deletion(cluster, store, monkeypatch)
        assert await operator.advance(cluster.stored) == 0
        assert cluster.ready.message == IN_PROGRESS
        assert await operator.advance(cluster.stored) == RETRY_DELAY_SECONDS
        message = cluster.ready.message
        assert message.startswith("The Deployment chat in namespace team is not deleted yet")
        assert "ValidatingAdmissionPolicy 'keep' denied request" in message
        assert message.endswith(RETAIN)
        assert len(message) < 1024, "an Event holds the way out as well"
        assert cluster.events == [], "a refusal of a few minutes is not worth a warning"
        cluster.age = timedelta(minutes=6)
        assert await operator.advance(cluster.stored) == RETRY_DELAY_SECONDS
        (event,) = cluster.events
        assert (event["type"], event["reason"], event["message"]) == ("Warning", "DeletionBlocked", message)
        assert cluster.calls.count("apply status") == 2, "nothing is written while nothing changes"
    assert await operator.advance(cluster.stored) == BUSY_DELAY_SECONDS
    assert await operator.advance(cluster.stored) == 0
    assert cluster.ready.message == IN_PROGRESS
    assert store.objects == 4, "the pods have not ended"


async def test_a_workload_that_a_person_deletes_is_reported_no_longer(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_workload(cluster, monkeypatch, DENIED)
    operator = deletion(cluster, FakeStore(cluster), monkeypatch)
    for _ in range(2):
        await operator.advance(cluster.stored)
    assert "is not deleted yet" in cluster.ready.message
    cluster.workloads.clear()
    for _ in range(2):
        await operator.advance(cluster.stored)
    assert cluster.ready.message == IN_PROGRESS


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
async def test_a_finalizer_that_may_not_be_removed_is_reported_with_the_way_out(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeCluster(policy=policy, age=timedelta(minutes=6))
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    with monkeypatch.context() as blocked:
        keep_finalizer(cluster, blocked, DENIED)
        for _ in range(6):
            delay_seconds = await operator.advance(cluster.stored)
        assert delay_seconds == RETRY_DELAY_SECONDS
    assert store.objects == (0 if policy == "Delete" else 4)
    message = cluster.ready.message
    assert message.startswith(f"The finalizer {FINALIZER} of AuroraSpeculator chat is not removed yet")
    assert "ValidatingAdmissionPolicy 'keep' denied request" in message
    assert message.endswith("kubectl edit auroraspeculator chat -n team")
    assert len(message) < 1024
    assert {"DeletionBlocked"} == {event["reason"] for event in cluster.events if event["type"] == "Warning"}
    assert await operator.advance(cluster.stored) == BUSY_DELAY_SECONDS
    assert cluster.finalizers == []


@pytest.mark.parametrize("keep", [keep_workload, keep_finalizer])
@pytest.mark.parametrize(
    "error", [Conflict("moved on", 409), NotFound("gone", 404), NotLeading("another replica acts")], ids=repr
)
async def test_what_the_loop_must_know_is_not_reported_as_a_refusal(
    keep: object, error: Exception, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(keep)
    keep(cluster, monkeypatch, error)
    operator = deletion(cluster, FakeStore(cluster), monkeypatch)
    await operator.advance(cluster.stored)
    if keep is keep_finalizer:
        cluster.policy = "Retain"
    with pytest.raises(type(error)):
        await operator.advance(cluster.stored)
    assert cluster.ready.message == IN_PROGRESS
