"""The operator works with the rights that the chart gives, and the page names each of them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from aurora_api import API_VERSION, KIND
from aurora_operator import kubernetes_api, main
from aurora_operator.act.child_writer import ChildWriter
from aurora_operator.act.custom_resource import EventRecorder, set_finalizer, write_status
from aurora_operator.children import metadata
from aurora_operator.observe.observer import Observer
from aurora_operator.observe.secret_values import SecretReader
from tests.assets.s3 import seaweedfs
from tests.cluster.command import wait_until
from tests.integration.chart.conftest import TEAM
from tests.rig.api_server import ApiServer, free_ports
from tests.rig.chart.rendered_chart import NAMESPACE, OPERATOR, SAMPLES, Right, operator_rights, render
from tests.unit.docs.markdown import page
from tests.unit.operator.worlds import MINIMAL

PAGE = page("docs/reference/rbac.md")


def documented() -> list[Right]:
    """Every right of the page's tables, one verb at a time: a first cell like ``jobs.batch``, then verbs."""
    found = []
    for row in PAGE.table_rows:
        resource, _, group = row[0].strip("`").partition(".")
        if len(row) == 4 and row[0].startswith("`"):
            found += [Right(group, resource, verb.strip("` ")) for verb in row[1].split(",")]
    return found


def unnamed(rights: set[Right]) -> set[Right]:
    return {right._replace(names=()) for right in rights}


def test_the_page_lists_exactly_the_operators_rights() -> None:
    rows = documented()
    assert len(rows) == len(set(rows)), "a right has one reason"
    assert set(rows) == unnamed(operator_rights(render()))


def test_a_tenants_operator_has_the_same_rights_in_one_namespace() -> None:
    tenant = unnamed(operator_rights(render(values=SAMPLES / "tenant-values.yaml")))
    assert tenant == unnamed(operator_rights(render()))


Users = Mapping[str, Callable[..., object]]
_WATCHED: Users = {"list": Observer.children, "watch": main.handler_registry}
_APPLIED: Users = {
    **_WATCHED,
    "get": ChildWriter._find,
    "create": ChildWriter._apply,
    "patch": ChildWriter._apply,
}
USERS: Mapping[str, Users] = {
    "auroraspeculators.aurora.dev": {
        "list": main.handler_registry,
        "watch": main.handler_registry,
        "get": Observer.speculator,
        "patch": set_finalizer,
    },
    "auroraspeculators.aurora.dev/status": {"patch": write_status},
    "auroraspeculators.aurora.dev/finalizers": {"update": metadata.child},
    "deployments.apps": _APPLIED,
    "jobs.batch": {
        **_WATCHED,
        "get": ChildWriter._find,
        "create": ChildWriter._create_once,
        "delete": ChildWriter.write_jobs,
    },
    "pods": _WATCHED,
    "services": _APPLIED,
    "serviceaccounts": _APPLIED,
    "poddisruptionbudgets.policy": {**_APPLIED, "delete": ChildWriter.write},
    "networkpolicies.networking.k8s.io": _APPLIED,
    "secrets": {"get": SecretReader.find, "create": ChildWriter._create_once},
    "events": {"create": EventRecorder.post},
}
"""The code that needs each verb."""


def _verbs(server: ApiServer, namespace: str, account: str, where: str) -> dict[str, set[str]]:
    """What the API server lets a ServiceAccount do in the namespace ``where``, by resource."""
    access = server.kubeconfig_of(namespace, account)
    listed = server.kubectl("auth", "can-i", "--list", "--no-headers", "-n", where, f"--kubeconfig={access}")
    found: dict[str, set[str]] = {}
    for line in listed.splitlines():
        if row := re.fullmatch(r"(\S+) +\[] +\[.*?] +\[(.*)]", line.strip()):
            found.setdefault(row[1], set()).update(row[2].split())
    return found


def _own_verbs(server: ApiServer, namespace: str, where: str) -> dict[str, set[str]]:
    """The operator's rights beyond those of every ServiceAccount."""
    nobody = {"name": "nobody", "namespace": TEAM}
    server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": nobody})
    everybody = _verbs(server, TEAM, nobody["name"], where)
    ours = _verbs(server, namespace, OPERATOR, where)
    return {resource: own for resource, verbs in ours.items() if (own := verbs - everybody.get(resource, set()))}


def test_the_api_server_gives_the_operator_only_verbs_that_have_a_user(server: ApiServer) -> None:
    granted = _own_verbs(server, NAMESPACE, TEAM)
    assert granted == {resource: set(verbs) for resource, verbs in USERS.items()}
    assert "delete" not in granted["deployments.apps"]


def test_a_whole_reconcile_needs_no_other_right(server: ApiServer, tmp_path: Path) -> None:
    """The operator's process, with a token of the chart's ServiceAccount. There are no nodes, so no pod runs."""
    server.kubectl("delete", "auroraspeculators", "--all", "-n", TEAM, "--wait=false")  # their store does not exist
    with seaweedfs() as s3:
        keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": TEAM}}
        server.apply(keys | {"stringData": s3.environment()})
        store = {"bucket": "rbac", "endpoint": s3.endpoint, "credentials": {"secretRef": {"name": "s3"}}}
        body = {"target": {"model": "org/model"}, "store": store}
        meta = {"name": "whole", "namespace": TEAM}
        server.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": body})
        with _operator(server, NAMESPACE, tmp_path / "operator.log") as log:
            wait_until("the store", lambda: "StorageReady" in _true_conditions(server, "whole"), 90, log.read_text)
            wait_until("all children", lambda: _kinds_of_children(server, "whole") == CHILD_KINDS, 90, log.read_text)
        assert "forbidden" not in log.read_text()


CHILD_KINDS = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Secret"}


def _true_conditions(server: ApiServer, name: str) -> set[str]:
    status = server.get("auroraspeculator", name, "-n", TEAM).get("status", {})
    return {c["type"] for c in status.get("conditions", ()) if c["status"] == "True"}


def _kinds_of_children(server: ApiServer, name: str) -> set[str]:
    kinds = ",".join(resource.plural for resource in (*kubernetes_api.CHILDREN, kubernetes_api.SECRET))
    listed = server.get(kinds, "-n", TEAM, "-l", f"app.kubernetes.io/instance={name}")["items"]
    return {obj["kind"] for obj in listed}


def test_a_tenants_operator_says_which_secret_it_may_not_read(server: ApiServer, tmp_path: Path) -> None:
    """The tenant's values name the Secrets ``my-s3-credentials`` and ``chat-keys``."""
    system, tenant = "aurora-tenant-a", "tenant-a"
    for namespace in (system, tenant):
        server.kubectl("create", "namespace", namespace)
    objects = render(values=SAMPLES / "tenant-values.yaml", namespace=system)
    server.apply(*(obj for obj in objects if obj["kind"] in ("ServiceAccount", "Role", "RoleBinding")))
    meta, credentials = {"name": "chat", "namespace": tenant}, {"secretRef": {"name": "of-another-team"}}
    body = MINIMAL | {"store": MINIMAL["store"] | {"credentials": credentials}}
    server.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": body})

    def storage() -> dict[str, str]:
        status = server.get("auroraspeculator", "chat", "-n", tenant).get("status", {})
        return next((c for c in status.get("conditions", ()) if c["type"] == "StorageReady"), {})

    assert _own_verbs(server, system, tenant).keys() == USERS.keys()
    assert _own_verbs(server, system, TEAM) == {}, "no right in a namespace that is not in watchNamespaces"
    with _operator(server, system, tmp_path / "operator.log", AURORA_WATCH_NAMESPACES=tenant) as log:
        wait_until("the refusal", lambda: storage().get("reason") == "SecretForbidden", 60, log.read_text)
    assert "may not read the Secret of-another-team: add it to secretNames" in storage()["message"]
    assert server.get("secret", "chat-keys", "-n", tenant)


@contextlib.contextmanager
def _operator(server: ApiServer, namespace: str, log: Path, **variables: str) -> Iterator[Path]:
    """The operator's process with the rights of the release in ``namespace``."""
    metrics_port, health_port = free_ports(2)
    environment = {
        "KUBECONFIG": str(server.kubeconfig_of(namespace, OPERATOR)),
        "PATH": os.environ["PATH"],
        "POD_NAMESPACE": namespace,
        "AURORA_LEASE_NAME": OPERATOR,
        "AURORA_AGENT_IMAGE": "agent:1",
        "AURORA_RUNTIME_IMAGE": "runtime:1",
        "AURORA_METRICS_PORT": str(metrics_port),
        "AURORA_HEALTH_PORT": str(health_port),
        **variables,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "aurora_operator"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield log
        finally:
            process.kill()
            process.wait(10)
