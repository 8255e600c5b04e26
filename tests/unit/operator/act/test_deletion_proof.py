"""A deletion ends only where the speculator's records were: an empty listing of another store proves nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aurora_operator.act.data_deletion import MAX_REFUSED_NOTES, RETRY_DELAY_SECONDS
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import KubernetesError
from tests.unit.operator.act.deleted_speculator import (
    FakeCluster,
    FakeStore,
    deletion,
    run,
)

ACTIVE = {"active": {"version": 3}}


async def test_a_store_without_records_of_an_active_version_ends_no_deletion_until_a_person_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = FakeCluster(status=dict(ACTIVE), age=timedelta(minutes=6))
    store = FakeStore(cluster, finds_no_records=True)
    operator = deletion(cluster, store, monkeypatch)
    await operator.advance(cluster.stored)
    for _ in range(3):
        await operator.advance(cluster.stored)
    assert cluster.finalizers == [FINALIZER]
    for text in (cluster.ready.message, cluster.events[0]["message"]):
        assert "version 3 was active, but the store AWS S3 has no record of it. If store.endpoint was changed" in text
        assert "If the objects are gone, for example because an operator deleted them and was updated" in text
        assert """{"deletionPolicy":"Retain"}""" in text
    assert {event["reason"] for event in cluster.events} == {"DataNotDeleted"}
    cluster.policy = "Retain"
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 4)


async def test_the_right_store_ends_the_deletion_after_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(status=dict(ACTIVE))
    store = FakeStore(cluster, finds_no_records=True)
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(3):
        await operator.advance(cluster.stored)
    store.finds_no_records = False
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 0)


async def test_a_deletion_of_an_active_version_goes_on_after_a_kill_at_any_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = FakeCluster(status=dict(ACTIVE))
    await run(whole, FakeStore(whole), monkeypatch)
    for kill_at in range(len(whole.calls)):
        again = FakeCluster(kill_at=kill_at, status=dict(ACTIVE))
        store = FakeStore(again)
        await run(again, store, monkeypatch)
        assert (again.finalizers, store.objects) == ([], 0)


async def test_the_last_record_goes_only_after_the_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(status=dict(ACTIVE))
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    while store.objects != 1:
        await operator.advance(cluster.stored)
    assert "active" not in cluster.status
    store.finds_no_records = (
        True  # the last record was deleted, and the operator ended before the finalizer was removed
    )
    await run(cluster, store, monkeypatch)
    assert cluster.finalizers == []


async def test_the_last_record_waits_for_an_api_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart before the finalizer is removed would find an empty root, which proves nothing."""
    cluster = FakeCluster(status=dict(ACTIVE))
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    while store.objects != 2:
        await operator.advance(cluster.stored)
    cluster.status_refused = KubernetesError("no connection")
    waits = {await operator.advance(cluster.stored) for _ in range(2 * MAX_REFUSED_NOTES)}
    assert (waits, store.objects) == ({RETRY_DELAY_SECONDS}, 1)
    cluster.status_refused = None
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 0)


async def test_the_last_record_stays_while_a_status_that_is_refused_may_still_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = FakeCluster(status=dict(ACTIVE), status_refused=KubernetesError("denied", 403))
    store = FakeStore(cluster)
    operator = deletion(cluster, store, monkeypatch)
    for _ in range(MAX_REFUSED_NOTES):
        await operator.advance(cluster.stored)
    assert store.objects == 1
    cluster.status_refused = None
    await operator.advance(cluster.stored)
    await operator.advance(cluster.stored)
    assert "active" not in cluster.status
    await run(cluster, store, monkeypatch)
    assert cluster.finalizers == []


async def test_a_status_that_is_refused_for_good_does_not_hold_the_last_record(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(status=dict(ACTIVE), status_refused=KubernetesError("denied", 403))
    store = FakeStore(cluster)
    await run(cluster, store, monkeypatch)
    assert (cluster.finalizers, store.objects) == ([], 0)
