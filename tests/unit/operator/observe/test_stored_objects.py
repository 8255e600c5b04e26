"""Changes that a reconcile could read wake the loop, and others do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aurora_operator.observe.stored_objects import PackedObjects, pack, unpack, wakes

SPECULATOR: dict[str, Any] = {
    "kind": "AuroraSpeculator",
    "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1, "resourceVersion": "1"},
    "status": {"updated": "1/1"},
}
DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "chat", "namespace": "team", "uid": "d", "generation": 1, "resourceVersion": "1"},
    "spec": {"replicas": 1},
    "status": {"readyReplicas": 1},
}


def changed(obj: dict[str, Any], *path: str, to: Any) -> dict[str, Any]:
    """A newer version of ``obj`` with the value at ``path`` replaced."""
    new = copy.deepcopy(obj)
    new["metadata"]["resourceVersion"] = "2"
    place = new
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return new


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("metadata", "generation"), 2),
        (("metadata", "annotations"), {"aurora.dev/abort": "3"}),
        (("metadata", "deletionTimestamp"), "2026-11-26T00:00:00Z"),
        (("metadata", "uid"), "another"),
    ],
)
def test_what_a_user_changes_in_a_speculator_wakes(path: tuple[str, ...], to: Any) -> None:
    assert wakes(SPECULATOR, changed(SPECULATOR, *path, to=to))


def test_a_status_that_we_wrote_wakes_nobody() -> None:
    assert not wakes(SPECULATOR, changed(SPECULATOR, "status", "updated", to="0/1"))


def test_another_installation_in_the_status_wakes() -> None:
    other = {"installation": "laptop/aurora-operator", "version": "1"}
    assert wakes(SPECULATOR, changed(SPECULATOR, "status", "operator", to=other))
    assert wakes(SPECULATOR, changed(SPECULATOR, "status", "operatorChallenge", to=other))


def test_a_child_wakes_when_its_spec_or_status_changes_or_when_it_comes_or_goes() -> None:
    assert wakes(DEPLOYMENT, changed(DEPLOYMENT, "status", "readyReplicas", to=0))
    assert wakes(DEPLOYMENT, changed(DEPLOYMENT, "spec", "replicas", to=2))
    assert wakes(None, DEPLOYMENT)
    assert wakes(DEPLOYMENT, None)
    assert not wakes(None, None)


def test_a_heartbeat_of_field_managers_wakes_nobody() -> None:
    beat = changed(DEPLOYMENT, "metadata", "managedFields", to=[{"time": "later"}])
    assert not wakes(unpack(pack(DEPLOYMENT)), unpack(pack(beat)))


def test_a_look_for_a_key_unpacks_nothing() -> None:
    stored = PackedObjects({("Pod", "chat-a"): b"this cannot be unpacked"})
    assert ("Pod", "chat-a") in stored
    assert ("Pod", "chat-b") not in stored
