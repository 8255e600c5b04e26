"""A deletion asks the API server once what is left, and its cache otherwise."""

from __future__ import annotations

from typing import Any, cast

import pytest

from aurora_operator.act.data_deletion import BUSY_DELAY_SECONDS
from tests.unit.operator.act.deleted_speculator import (
    FakeCache,
    FakeCluster,
    FakeStore,
    deletion,
    inference_pod,
    workload,
)


@pytest.fixture(name="cluster")
def _cluster() -> FakeCluster:
    made = FakeCluster(pods=[inference_pod("chat-1a")])
    made.workloads = dict([workload("Deployment", "chat"), workload("Deployment", "another", "uid-of-another")])
    return made


async def test_a_deletion_that_waits_for_pods_or_for_the_store_costs_no_call_of_the_api_server(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore(cluster, error="the store is away")
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(3):
        await operator.advance(cluster.stored)
    cluster.calls.clear()
    for _ in range(10):
        assert await operator.advance(cluster.stored) == BUSY_DELAY_SECONDS
    assert cluster.calls == []
    cluster.pods = []
    await operator.advance(cluster.stored)
    assert cluster.calls == ["list Deployment", "list Job", "list Pod", "delete objects", "apply status"]
    cluster.calls.clear()
    for _ in range(3):
        await operator.advance(cluster.stored)
    assert not [call for call in cluster.calls if call.startswith("list")]


async def test_a_cache_that_is_behind_lets_no_object_be_deleted_while_a_pod_runs(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    operator._cache = cast(Any, FakeCache(cluster, behind=True))
    for _ in range(5):
        await operator.advance(cluster.stored)
    assert store.objects == 4
    assert list(cluster.workloads) == [("Deployment", "another")], "the listing shows our workloads"
    cluster.pods = []
    await operator.advance(cluster.stored)
    assert store.objects == 2
