"""Objects of one namespace take a bounded part of the cache, and concern no other namespace."""

from __future__ import annotations

import random
from typing import Any

import pytest

from aurora_operator.kubernetes_api import Object
from aurora_operator.observe import cache_budget
from aurora_operator.observe.cluster_cache import ClusterCache, Scope
from tests.unit.operator.observe.test_cluster_cache import pod, speculator

ACCOUNTS = Scope("ServiceAccount")
NOISE = random.Random(0)  # noqa: S311 - only has to be incompressible


@pytest.fixture(autouse=True)
def _small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_budget, "NAMESPACE_BYTES", 400_000)


def account(name: str, revision: int, namespace: str = "team", **metadata: Any) -> Object:
    made = pod(name, revision)
    return {"kind": "ServiceAccount", "metadata": made["metadata"] | {"namespace": namespace} | metadata}


def noise(size: int) -> str:
    """Text that cannot be compressed by much."""
    return NOISE.randbytes(size // 2).hex()


def stored_bytes(cache: ClusterCache) -> int:
    return sum(len(entry.packed) for entry in cache._entries.values())


def test_annotations_of_others_take_no_memory_and_ours_are_kept() -> None:
    cache = ClusterCache(["ServiceAccount"])
    for number in range(20):
        annotations = {"note": noise(50_000), "aurora.dev/written": "d"}
        cache.update(ACCOUNTS, account(f"a{number}", number + 1, annotations=annotations))
    stored = cache.get("ServiceAccount", "team", "a7")
    assert stored is not None
    assert stored["metadata"]["annotations"] == {"aurora.dev/written": "d"}
    assert stored_bytes(cache) < 50_000


def test_a_namespace_cannot_fill_the_cache_and_leaves_others_their_room(caplog: pytest.LogCaptureFixture) -> None:
    cache = ClusterCache(["ServiceAccount"])
    for number in range(300):
        cache.update(ACCOUNTS, account(f"a{number}", number + 1, labels={"x": noise(10_000)}))
    assert stored_bytes(cache) <= cache_budget.NAMESPACE_BYTES
    assert cache.left_out(ACCOUNTS)
    assert cache.budget.crowded_namespaces == 1
    assert len(caplog.records) == 1, "it is said once"
    cache.update(ACCOUNTS, account("b", 1000, "other"))
    assert cache.get("ServiceAccount", "other", "b") is not None


def test_an_object_that_grows_beyond_the_room_counts_as_gone() -> None:
    cache = ClusterCache(["ServiceAccount"])
    cache.update(ACCOUNTS, account("a", 1))
    woken = cache.update(ACCOUNTS, account("a", 2, labels={"x": noise(2 << 20)}))
    assert woken == {("team", "chat")}
    assert cache.get("ServiceAccount", "team", "a") is None


def test_a_list_finds_the_objects_for_which_there_is_room_again() -> None:
    cache = ClusterCache(["ServiceAccount"])
    for number in range(100):
        cache.update(ACCOUNTS, account(f"a{number}", number + 1, labels={"x": noise(10_000)}))
    cache.update(ACCOUNTS, account("late", 100, labels={"x": noise(10_000)}))
    assert cache.get("ServiceAccount", "team", "late") is None
    listed = cache.begin_list(ACCOUNTS, 200)  # removes the others only at its end
    listed.add([account("late", 100, labels={"x": noise(10_000)})])
    listed.finish()
    again = cache.begin_list(ACCOUNTS, 201)
    again.add([account("late", 100, labels={"x": noise(10_000)})])
    again.finish()
    assert not cache.left_out(ACCOUNTS)
    assert cache.get("ServiceAccount", "team", "late") is not None


def test_each_speculator_makes_room_for_its_children() -> None:
    cache = ClusterCache(["AuroraSpeculator", "Pod"])
    for number in range(50):
        cache.put(speculator("team", f"s{number}", number + 1))
    for number in range(5_000):
        cache.put(pod(f"p{number}", 1000 + number, instance=f"s{number % 50}", podIP="10.0.0.1", phase="Running"))
    assert cache.counts["Pod"] == 5_000
    assert cache.budget.crowded_namespaces == 0


def test_the_bytes_are_counted_back_when_objects_go() -> None:
    cache = ClusterCache(["ServiceAccount"])
    for number in range(300):
        cache.update(ACCOUNTS, account(f"a{number}", number + 1, labels={"x": noise(10_000)}))
    for number in range(300):
        cache.delete(ACCOUNTS, account(f"a{number}", 1000 + number))
    assert cache.budget._used == {}
    assert cache.budget.crowded_namespaces == 0


def test_a_speculator_of_an_absurd_size_is_ignored() -> None:
    cache = ClusterCache(["AuroraSpeculator"])
    cache.put(speculator("team", "chat", 1) | {"spec": {"x": noise(1 << 20)}})
    assert cache.speculators() == []
