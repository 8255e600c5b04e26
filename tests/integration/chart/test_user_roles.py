"""Users with the ClusterRoles view, edit and admin of Kubernetes, on a real API server with the chart installed."""

from __future__ import annotations

import json

import pytest

from aurora_api import API_VERSION, KIND
from tests.cluster.command import CommandError, wait_until
from tests.integration.chart.conftest import TEAM
from tests.rig.api_server import ApiServer
from tests.rig.chart.rendered_chart import render, select
from tests.unit.operator.worlds import MINIMAL

ROLES = ("view", "edit", "admin")
EDITORS = ("edit", "admin")
EXAMPLE = "example"
"""A speculator that an administrator of the cluster created."""


@pytest.fixture(scope="module", name="users")
def _users(server: ApiServer) -> ApiServer:
    """One user for each ClusterRole, with the name of the role and rights in one namespace."""
    for role in ROLES:
        server.kubectl("create", "rolebinding", role, "-n", TEAM, f"--clusterrole={role}", f"--user={role}")
    server.apply(speculator(EXAMPLE))
    wait_until("the aggregated roles", lambda: all(_may(server, role, "get", "aspec") for role in ROLES), 30)
    return server


def speculator(name: str) -> dict[str, object]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name, "namespace": TEAM}, "spec": MINIMAL}


def _may(server: ApiServer, user: str, verb: str, resource: str) -> bool:
    try:
        return server.kubectl("auth", "can-i", verb, resource, "-n", TEAM, f"--as={user}").strip() == "yes"
    except CommandError:
        return False


def as_user(server: ApiServer, user: str, *arguments: str, stdin: str | None = None) -> str:
    return server.kubectl(*arguments, "-n", TEAM, f"--as={user}", stdin=stdin)


@pytest.mark.parametrize("user", ROLES)
def test_everybody_reads_speculators_with_status_and_scale(users: ApiServer, user: str) -> None:
    assert EXAMPLE in as_user(users, user, "get", "auroraspeculators")
    for subresource in ("status", "scale"):
        as_user(users, user, "get", "auroraspeculator", EXAMPLE, f"--subresource={subresource}")


@pytest.mark.parametrize(
    "command",
    [
        ("patch", "auroraspeculator", EXAMPLE, "--type=merge", '--patch={"spec":{"serving":{"replicas":2}}}'),
        ("scale", "auroraspeculator", EXAMPLE, "--replicas=2"),
        ("annotate", "auroraspeculator", EXAMPLE, "aurora.dev/abort=99"),
        ("delete", "auroraspeculator", EXAMPLE),
    ],
    ids=lambda command: command[0],
)
def test_a_viewer_changes_nothing(users: ApiServer, command: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match=r'User "view" cannot (patch|delete) resource "auroraspeculators'):
        as_user(users, "view", *command)


def test_a_viewer_creates_nothing(users: ApiServer) -> None:
    with pytest.raises(CommandError, match='User "view" cannot create resource "auroraspeculators"'):
        as_user(users, "view", "create", "-f", "-", stdin=json.dumps(speculator("mine")))


@pytest.mark.parametrize("user", EDITORS)
def test_an_editor_creates_changes_scales_and_deletes(users: ApiServer, user: str) -> None:
    name = f"of-{user}"
    as_user(users, user, "create", "-f", "-", stdin=json.dumps(speculator(name)))
    as_user(users, user, "annotate", "auroraspeculator", name, "aurora.dev/abort=99")
    as_user(users, user, "scale", "auroraspeculator", name, "--replicas=3")
    assert users.get("auroraspeculator", name, "-n", TEAM)["spec"]["serving"]["replicas"] == 3
    as_user(users, user, "delete", "auroraspeculator", name)


@pytest.mark.parametrize("user", ROLES)
def test_nobody_but_the_operator_writes_the_status(users: ApiServer, user: str) -> None:
    options = ("--subresource=status", "--type=merge", '--patch={"status":{"active":{"version":7}}}')
    with pytest.raises(CommandError, match='cannot patch resource "auroraspeculators/status"'):
        as_user(users, user, "patch", "auroraspeculator", EXAMPLE, *options)


@pytest.mark.parametrize("user", EDITORS)
def test_nobody_but_the_operator_blocks_a_speculators_deletion(users: ApiServer, user: str) -> None:
    uid = users.get("auroraspeculator", EXAMPLE, "-n", TEAM)["metadata"]["uid"]
    reference = {"apiVersion": API_VERSION, "kind": KIND, "name": EXAMPLE, "uid": uid, "blockOwnerDeletion": True}
    metadata = {"name": "mine", "namespace": TEAM, "ownerReferences": [reference]}
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    with pytest.raises(CommandError, match="can't set finalizers"):
        as_user(users, user, "create", "-f", "-", stdin=json.dumps(obj))


def test_the_roles_belong_to_the_roles_of_kubernetes() -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"

    def parents(name: str) -> set[str]:
        labels = select(render(), "ClusterRole", name)["metadata"]["labels"]
        return {key.removeprefix(prefix) for key, value in labels.items() if key.startswith(prefix) and value == "true"}

    assert parents("aurora-operator-view") == set(ROLES)
    assert parents("aurora-operator-edit") == set(EDITORS)


def test_the_roles_can_be_left_to_another_release() -> None:
    names = {obj["metadata"]["name"] for obj in render("--set=userRoles.enabled=false") if obj["kind"] == "ClusterRole"}
    assert names == {"aurora-operator"}
