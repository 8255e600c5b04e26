"""Promise 7: the operator neither changes, adopts nor deletes an object that it did not create."""

from __future__ import annotations

from typing import Any

from tests.cluster.command import wait_until
from tests.isolation.idle_speculators import IdleSpeculators

NAME = "web"
TIMEOUT_SECONDS = 120.0
"""A taken name is tried again at least once a minute."""
FOREIGN: tuple[dict[str, Any], ...] = (
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "labels": {"owner": "somebody-else"}},
        "spec": {"selector": {"app": "shop"}, "ports": [{"port": 80}]},
    },
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "labels": {"owner": "somebody-else"}}},
    {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": NAME, "labels": {"owner": "somebody-else"}},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "shop"}}},
    },
    {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{NAME}-keys", "labels": {"owner": "somebody-else"}},
        "stringData": {"password": "not-ours"},
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": NAME, "labels": {"owner": "somebody-else"}},
        "spec": {"podSelector": {"matchLabels": {"app": "shop"}}, "policyTypes": ["Ingress"]},
    },
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "labels": {"owner": "somebody-else"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "shop"}},
            "template": {
                "metadata": {"labels": {"app": "shop"}},
                "spec": {"containers": [{"name": "shop", "image": "registry.invalid/shop:1"}]},
            },
        },
    },
)


def _content(speculators: IdleSpeculators) -> list[dict[str, Any]]:
    """The foreign objects without what Kubernetes' own controllers write into them."""
    found = [speculators.child(obj["kind"], obj["metadata"]["name"]) for obj in FOREIGN]
    contents = []
    for obj in found:
        assert obj is not None, "a foreign object was deleted"
        metadata = {key: obj["metadata"].get(key) for key in ("uid", "labels", "ownerReferences")}
        contents.append({"metadata": metadata, **{key: obj.get(key) for key in ("spec", "data", "secrets")}})
    return contents


def test_objects_of_others_survive_a_speculator_of_their_name(speculators: IdleSpeculators) -> None:
    cluster, namespace = speculators.aurora.cluster, speculators.aurora.namespace
    cluster.apply(*FOREIGN, namespace=namespace)
    before = _content(speculators)
    speculators.apply(NAME)
    # The Deployment is not even tried: its pods would use the account and the keys of somebody else.
    tried = {f"{obj['kind']} {obj['metadata']['name']}" for obj in FOREIGN if obj["kind"] != "Deployment"}
    wait_until(
        "the speculator names what is taken", lambda: all(n in _taken(speculators) for n in tried), TIMEOUT_SECONDS
    )
    assert "Deployment web" not in _taken(speculators)
    assert _content(speculators) == before
    cluster.kubectl("delete", "service", NAME, "-n", namespace)
    wait_until("the Service is created once its name is free", lambda: _is_ours(speculators), TIMEOUT_SECONDS)
    speculators.delete(NAME)
    wait_until(
        "Kubernetes deletes the speculator's own Service",
        lambda: speculators.child("Service", NAME) is None,
        TIMEOUT_SECONDS,
    )
    cluster.apply(FOREIGN[0], namespace=namespace)
    after = _content(speculators)
    assert after[1:] == before[1:]
    for obj in FOREIGN:
        cluster.kubectl("delete", obj["kind"], obj["metadata"]["name"], "-n", namespace)


def _taken(speculators: IdleSpeculators) -> str:
    condition = speculators.condition(NAME, "Stalled")
    return str(condition.get("message", "")) if condition.get("reason") == "NameTaken" else ""


def _is_ours(speculators: IdleSpeculators) -> bool:
    service = speculators.child("Service", NAME)
    owners = (service or {}).get("metadata", {}).get("ownerReferences") or ()
    return any(owner["kind"] == "AuroraSpeculator" for owner in owners)
