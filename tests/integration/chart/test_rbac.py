"""The operator works with exactly the rights that the chart gives, and each missing right is an error in words."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes import config as kube_config

from aurora_api import API_VERSION, KIND
from aurora_operator import kubernetes_api
from aurora_operator.children.owner import Owner
from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import HttpKubernetesApi, Object
from tests.assets.s3 import STORES_ON_THIS_MACHINE, seaweedfs
from tests.cluster.command import wait_until
from tests.integration.chart.conftest import TEAM
from tests.integration.chart.probes import PROBES, Probe, run_probe
from tests.rig.api_server import ApiServer, free_ports
from tests.rig.chart.rendered_chart import NAMESPACE, OPERATOR, SAMPLES, Right, operator_rights, render
from tests.unit.docs.markdown import page
from tests.unit.operator.worlds import MINIMAL

PAGE = page("docs/reference/rbac.md")
COMPLETE = "complete"
"""A ServiceAccount with all documented rights."""


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
    chart = unnamed(operator_rights(render())) | unnamed(operator_rights(render(values=SAMPLES / "shard-values.yaml")))
    assert set(rows) == chart


def test_the_operator_has_no_right_that_its_code_does_not_use() -> None:
    assert {(right.resource, right.verb) for right in documented()} == set(PROBES)


def test_a_tenants_operator_has_the_same_rights_in_one_namespace() -> None:
    tenant = unnamed(operator_rights(render(values=SAMPLES / "tenant-values.yaml")))
    assert tenant == unnamed(operator_rights(render()))


@pytest.fixture(scope="module", name="accounts")
def _accounts(server: ApiServer) -> None:
    """ServiceAccounts with all documented rights, and with all but one."""
    accounts = {COMPLETE: documented()}
    for number, right in enumerate(documented()):
        accounts[f"without-{number}"] = [other for other in documented() if other != right]
    server.apply(*(obj for name, rights in accounts.items() for obj in _account(name, rights)))


def _account(name: str, rights: list[Right]) -> Iterator[Object]:
    """A ServiceAccount with these rights in all namespaces."""
    api = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb]} for right in rights]
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
    yield {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    yield {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    }


@pytest.fixture(scope="module", name="admin")
def _admin(server: ApiServer) -> HttpKubernetesApi:
    return HttpKubernetesApi(client.ApiClient(_configuration(server)))


@functools.cache
def _configuration(server: ApiServer, service_account: str = "") -> client.Configuration:
    """Access as an administrator, or as a ServiceAccount in the operator's namespace."""
    file = server.kubeconfig_of(NAMESPACE, service_account) if service_account else server.kubeconfig
    configuration = client.Configuration()
    kube_config.load_kube_config(str(file), client_configuration=configuration)
    return configuration


def probe_as(server: ApiServer, admin: HttpKubernetesApi, service_account: str, name: str) -> Probe:
    """A new speculator ``name``, and the rights of ``service_account``."""
    meta = {"name": name, "namespace": TEAM}
    made = admin.create({"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": MINIMAL})["metadata"]
    owner = Owner(TEAM, name, made["uid"], made["generation"], made["resourceVersion"])
    return Probe(admin, client.ApiClient(_configuration(server, service_account)), owner)


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize(("number", "right"), list(enumerate(documented())), ids=str)
def test_every_right_is_needed_and_its_absence_is_an_error_in_words(
    server: ApiServer, admin: HttpKubernetesApi, caplog: pytest.LogCaptureFixture, number: int, right: Right
) -> None:
    run_probe(probe_as(server, admin, COMPLETE, f"with-{number}"), right)
    assert "forbidden" not in caplog.text
    probe = probe_as(server, admin, f"without-{number}", f"without-{number}")
    try:
        run_probe(probe, right)
    except KubernetesError as error:
        said = str(error)
    else:
        said = caplog.text
    if right.resource == "auroraspeculators/finalizers":
        assert (
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers" in said
        )
    else:
        assert f'cannot {right.verb} resource "{right.resource}" in API group "{right.group}"' in said


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


CHILD_KINDS = {resource.kind for resource in (*kubernetes_api.CHILDREN, kubernetes_api.SECRET)}


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
        **STORES_ON_THIS_MACHINE,
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
