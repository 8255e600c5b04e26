"""The operator works with exactly the rights that the chart gives, and each missing right is an error in words.

Every probe calls the operator's own code. So a right that no code uses has no probe, and its row fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes import config as kube_config

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator import kubernetes_api
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.finalizer import set_finalizer
from aurora_operator.act.former_trainer import delete_former_trainer
from aurora_operator.act.status_writer import write_status
from aurora_operator.children.access import new_keys
from aurora_operator.children.metadata import child, trainer_name
from aurora_operator.children.owner import Owner
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.errors import KubernetesError, NotFound
from aurora_operator.kubernetes_api import HttpKubernetesApi, Object, Resource
from aurora_operator.plan import EventNote
from aurora_operator.plan.upgrade.decision import decide as decide_upgrade
from aurora_operator.plan.wanted_children import children
from aurora_operator.watch.api_stream import ApiStream, Page
from tests.assets.s3 import seaweedfs
from tests.cluster.command import wait_until
from tests.integration.chart.conftest import TEAM
from tests.rig.api_server import ApiServer, free_ports
from tests.rig.rendered_chart import NAMESPACE, OPERATOR, SAMPLES, Right, operator_rights, render
from tests.unit.docs.markdown import page
from tests.unit.operator.worlds import CONFIG, MINIMAL, observed, spec

PAGE = page("docs/reference/rbac.md")
COMPLETE = "complete"
"""A ServiceAccount with all documented rights."""
RESOURCES = (
    kubernetes_api.SPECULATOR,
    *kubernetes_api.CHILDREN,
    kubernetes_api.JOB,
    kubernetes_api.POD,
    kubernetes_api.SECRET,
)


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


@dataclass(frozen=True)
class Probe:
    """A speculator, an administrator's API, and the operator's API with the rights of one ServiceAccount."""

    admin: HttpKubernetesApi
    client: client.ApiClient
    owner: Owner

    @property
    def api(self) -> HttpKubernetesApi:
        return HttpKubernetesApi(self.client)

    def as_admin(self) -> Probe:
        return replace(self, client=self.admin._api)

    def child(self, resource: Resource) -> Object:
        """A child of this kind, as the operator makes it."""
        if resource == kubernetes_api.JOB:
            return job(self.owner, spec(), CONFIG, ValidationAttempt(version=1, attempt=1, active=0))
        if resource == kubernetes_api.SECRET:
            return new_keys(self.owner)
        world = replace(observed(), owner=self.owner)
        made = children(world, CONFIG, decide_upgrade(world, CONFIG))
        return next(obj for obj in made if obj["kind"] == resource.kind)

    def call(self, method: str, path: str, body: Object | None = None) -> str:
        """A call that the operator's API client does not offer."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        request = self.client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = self.client.call_api(*request, _request_timeout=30)
        text: str = response.read().decode()
        if response.status >= 300:
            raise KubernetesError(json.loads(text)["message"], response.status)
        return text


def get(probe: Probe, resource: Resource) -> None:
    obj = probe.owner if resource == kubernetes_api.SPECULATOR else probe.admin.create(probe.child(resource))
    name = obj.name if isinstance(obj, Owner) else obj["metadata"]["name"]
    assert probe.api.get(resource, TEAM, name)["metadata"]["name"] == name


def list_all(probe: Probe, resource: Resource) -> None:
    """The list of an informer in all namespaces."""
    asyncio.run(_list_page(probe.api, resource))


def watch(probe: Probe, resource: Resource) -> None:
    """The watch of an informer in all namespaces."""
    asyncio.run(_watch(probe.api, resource, asyncio.run(_list_page(probe.admin, resource)).revision))


async def _list_page(api: HttpKubernetesApi, resource: Resource) -> Page:
    stream = ApiStream(api.configuration)
    try:
        return await stream.list_page(resource, "", "", "")
    finally:
        await stream.close()


async def _watch(api: HttpKubernetesApi, resource: Resource, revision: int) -> None:
    stream = ApiStream(api.configuration)
    try:
        async for _ in stream.watch(resource, "", "", revision, seconds=1):
            pass
    finally:
        await stream.close()


def create(probe: Probe, resource: Resource) -> None:
    probe.api.create(probe.child(resource))


def patch(probe: Probe, resource: Resource) -> None:
    probe.admin.create(probe.child(resource))
    probe.api.apply(probe.child(resource))


def delete(probe: Probe, resource: Resource) -> None:
    made = probe.admin.create(probe.child(resource))["metadata"]
    probe.api.delete(resource, TEAM, made["name"], made["uid"])
    with pytest.raises(NotFound):
        probe.admin.get(resource, TEAM, made["name"])


def write_own_status(probe: Probe) -> None:
    write_status(probe.api, probe.owner, SpeculatorStatus())


def block_owner_deletion(probe: Probe) -> None:
    """Every child has an owner reference with blockOwnerDeletion."""
    probe.api.create(probe.child(kubernetes_api.SERVICE))


def hold_by_finalizer(probe: Probe) -> None:
    set_finalizer(probe.api, probe.owner, wanted=True)


def replace_former_trainer(probe: Probe) -> None:
    """Find and delete the StatefulSet of an earlier version."""
    name, labels = trainer_name(probe.owner), {"app": "former"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "trainer", "image": "trainer:1"}]}}
    body = {"selector": {"matchLabels": labels}, "serviceName": name, "template": template}
    former = child(probe.owner, "apps/v1", "StatefulSet", name, spec=body)
    probe.as_admin().call("POST", kubernetes_api.STATEFUL_SET.path(TEAM), former)
    asyncio.run(delete_former_trainer(probe.api, probe.owner))
    with pytest.raises(NotFound):
        probe.admin.get(kubernetes_api.STATEFUL_SET, TEAM, name)


def post_event(probe: Probe) -> None:
    """A refused Event is only logged. ``explained`` finds the log line."""
    note = EventNote("Probe", "a test of the operator's rights", warning=False)
    asyncio.run(EventRecorder(probe.api).post(note, probe.owner))


def lease(probe: Probe, verb: str) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": probe.owner.name}}
    if verb == "create":
        probe.call("POST", path, body)
        return
    made = json.loads(probe.as_admin().call("POST", path, body))
    probe.call("GET" if verb == "get" else "PUT", f"{path}/{probe.owner.name}", made)


BY_VERB = {"get": get, "list": list_all, "watch": watch, "create": create, "patch": patch, "delete": delete}
SPECIAL: dict[tuple[str, str], Callable[[Probe], None]] = {
    ("auroraspeculators/status", "patch"): write_own_status,
    ("auroraspeculators/finalizers", "update"): block_owner_deletion,
    ("auroraspeculators", "patch"): hold_by_finalizer,
    ("statefulsets", "get"): replace_former_trainer,
    ("statefulsets", "delete"): replace_former_trainer,
    ("events", "create"): post_event,
    ("leases", "create"): lambda probe: lease(probe, "create"),
    ("leases", "get"): lambda probe: lease(probe, "get"),
    ("leases", "update"): lambda probe: lease(probe, "update"),
}
"""Rights that no child's kind explains."""


def run_probe(probe: Probe, right: Right) -> None:
    """Do what the operator does with this right. Raises :class:`KubernetesError` when the right is missing."""
    special = SPECIAL.get((right.resource, right.verb))
    if special is not None:
        special(probe)
    else:
        (resource,) = (resource for resource in RESOURCES if resource.plural == right.resource)
        BY_VERB[right.verb](probe, resource)


@pytest.fixture(scope="module", name="admin")
def _admin(server: ApiServer) -> HttpKubernetesApi:
    return HttpKubernetesApi(client.ApiClient(_configuration(server)))


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
    metrics_port, liveness_port = free_ports(2)
    environment = {
        "KUBECONFIG": str(server.kubeconfig_of(namespace, OPERATOR)),
        "PATH": os.environ["PATH"],
        "POD_NAMESPACE": namespace,
        "AURORA_LEASE_NAME": OPERATOR,
        "AURORA_AGENT_IMAGE": "agent:1",
        "AURORA_RUNTIME_IMAGE": "runtime:1",
        "AURORA_METRICS_PORT": str(metrics_port),
        "AURORA_LIVENESS_PORT": str(liveness_port),
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
