"""Somebody who may create speculators gets no more than the namespace gives, and stops no other speculator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.command import CommandError
from tests.isolation.idle_speculators import IdleSpeculators, manifest
from tests.rig.installation import RESOURCE, Installation

pytestmark = pytest.mark.timeout(1800)
TENANT = "tenant"


@pytest.fixture(scope="module", name="tenant")
def _tenant(aurora: Installation) -> Iterator[Installation]:
    """A namespace with the store's Secret, in which templates are restricted."""
    aurora.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TENANT}})
    secret = aurora.cluster.get("secret", "aurora-store", "-n", aurora.namespace)
    copied = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aurora-store"}, "data": secret["data"]}
    aurora.cluster.apply(copied, namespace=TENANT)
    yield Installation(aurora.cluster, TENANT)
    aurora.cluster.kubectl("delete", RESOURCE, "--all", "-n", TENANT, "--timeout=120s", timeout_seconds=150)
    aurora.cluster.kubectl("delete", "namespace", TENANT, "--timeout=120s", timeout_seconds=150)


def pod(**spec: Any) -> dict[str, Any]:
    return {"serving": {"template": {"spec": spec}}}


def store(**fields: Any) -> dict[str, Any]:
    return {"store": fields}


def extra(*arguments: str) -> dict[str, Any]:
    return {"serving": {"extraArgs": list(arguments)}}


REFUSED: dict[str, dict[str, Any]] = {
    "a folder of the node": pod(volumes=[{"name": "root", "hostPath": {"path": "/"}}]),
    "another identity": pod(serviceAccountName="default"),
    "containers that are no list": pod(containers="sglang"),
    "the node's metadata service": store(endpoint="http://169.254.169.254"),
    "a prefix of another": store(prefix="../../other"),
    "a model that is an argument": {"target": {"model": "--evil"}},
    "weights of noise": extra("--load-format", "dummy"),
}


@pytest.mark.parametrize("parts", REFUSED.values(), ids=REFUSED)
def test_what_reaches_beyond_the_namespace_or_makes_no_sense_is_refused(
    tenant: Installation, parts: dict[str, Any]
) -> None:
    resource = manifest("author")
    for section, fields in parts.items():
        resource["spec"][section] = resource["spec"].get(section, {}) | fields
    with pytest.raises(CommandError, match=r"(?i)invalid|denied|must be"):
        tenant.cluster.kubectl("create", "-n", TENANT, "--dry-run=server", "-f", "-", input=json.dumps(resource))


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [("loopback", "http://127.0.0.1:8080"), ("api-server", "https://kubernetes.default.svc:443")],
)
def test_the_operator_shows_nothing_that_another_address_answers(
    tenant: Installation, name: str, endpoint: str
) -> None:
    IdleSpeculators(tenant).apply(name, endpoint=endpoint)
    found = tenant.wait_until(name, "the store is read", lambda cr: _store_reason(cr) != "", 60)
    assert _store_reason(found) == "Unreachable", found["status"]["conditions"]


def _store_reason(resource: dict[str, Any]) -> str:
    conditions = resource.get("status", {}).get("conditions", [])
    return next((str(c["reason"]) for c in conditions if c["type"] == "StorageReady" and c["status"] == "False"), "")
