"""The plugin ``kubectl aurora`` as a process, against a real API server with the chart's definition and roles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_protocol.pod_settings import ADMIN_KEY
from tests.cluster.command import CommandError, wait_until
from tests.cluster.local.build import binaries
from tests.integration.chart.conftest import TEAM
from tests.integration.chart.test_user_roles import speculator
from tests.rig.api_server import ApiServer, api_server
from tests.unit.operator.worlds import CONFIG, OWNER, spec

NAME = "plugin"
KIND = "auroraspeculator"
RESTRICTED, ENFORCED = "restricted", {"pod-security.kubernetes.io/enforce": "restricted"}
STATUS = SpeculatorStatus(
    observed_generation=1,
    active=VersionStatus(version=4, speedup="1.52x (1.45-1.60)"),
    previous=PreviousVersion(version=3),
    candidate=CandidateStatus(version=5, phase=CandidatePhase.VALIDATED),
    rollout=RolloutStatus(phase=RolloutPhase.JUDGING, version=5, total=2, updated=1),
)


@pytest.fixture(name="users")
def _users(server: ApiServer) -> Iterator[ApiServer]:
    """A speculator in a roll, and the ServiceAccounts ``viewer`` and ``editor``."""
    for account, role in (("viewer", "view"), ("editor", "edit")):
        account_object = {"apiVersion": "v1", "kind": "ServiceAccount"}
        server.apply(account_object | {"metadata": {"name": account, "namespace": TEAM}}, binding(account, role))
    server.apply(speculator(NAME))
    wait_until("the aggregated roles", lambda: may(server, "viewer", "get") and may(server, "editor", "patch"), 30)
    write_status(server, STATUS.model_dump(mode="json", by_alias=True, exclude_none=True))
    yield server
    server.kubectl("delete", KIND, NAME, "-n", TEAM)


def may(server: ApiServer, account: str, verb: str) -> bool:
    user = f"--as=system:serviceaccount:{TEAM}:{account}"
    try:
        return server.kubectl("auth", "can-i", verb, KIND, "-n", TEAM, user).strip() == "yes"
    except CommandError:
        return False


def binding(account: str, role: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"plugin-{account}", "namespace": TEAM},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": TEAM}],
    }


def write_status(server: ApiServer, status: dict[str, Any]) -> None:
    patch = json.dumps({"status": status})
    server.kubectl("patch", KIND, NAME, "-n", TEAM, "--subresource=status", "--type=merge", f"--patch={patch}")


def run(kubeconfig: Path, *arguments: str) -> Any:
    """Run the plugin as a process. Returns exit code, stdout and stderr."""
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "aurora_cli", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def as_user(server: ApiServer, user: str, *arguments: str) -> Any:
    return run(server.kubeconfig_of(TEAM, user), *arguments, "-n", TEAM)


def stored(server: ApiServer) -> Any:
    return server.get(KIND, NAME, "-n", TEAM)


def test_a_viewer_sees_everything_and_changes_nothing(users: ApiServer) -> None:
    shown = as_user(users, "viewer", "status", NAME)
    assert shown.returncode == 0, shown.stderr
    assert "version 4, 1.52x (1.45-1.60) over no speculation" in shown.stdout
    assert as_user(users, "viewer", "history", NAME).returncode == 0
    assert as_user(users, "viewer", "doctor", NAME).returncode == 0
    before = stored(users)
    for command in (("pause", NAME), ("abort", NAME), ("pin", NAME, "3"), ("pin", NAME, "3", "--dry-run")):
        refused = as_user(users, "viewer", *command)
        assert refused.returncode == 1
        (line,) = refused.stderr.splitlines()
        assert line.startswith("error: auroraspeculators.aurora.dev")
        assert "cannot patch resource" in line
    assert stored(users) == before


def test_an_editor_decides(users: ApiServer) -> None:
    generation = stored(users)["metadata"]["generation"]
    dry = as_user(users, "editor", "pin", NAME, "3", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert stored(users)["metadata"]["generation"] == generation
    assert as_user(users, "editor", "abort", NAME).returncode == 0
    assert stored(users)["metadata"]["annotations"][ABORT_ANNOTATION] == "5"
    for command, expected in (
        (("pin", NAME, "3"), {"pin": 3}),
        (("pause", NAME), {"pin": 3, "paused": True}),
        (("unpin", NAME), {"paused": True}),
        (("resume", NAME), {"paused": False}),
    ):
        result = as_user(users, "editor", *command)
        assert result.returncode == 0, result.stderr
        rollout = stored(users)["spec"]["rollout"]
        assert {key: rollout[key] for key in ("pin", "paused") if key in rollout} == {"paused": False} | expected
    managers = users.get(KIND, NAME, "-n", TEAM, "--show-managed-fields")["metadata"]["managedFields"]
    assert "kubectl-aurora" in {entry["manager"] for entry in managers}
    assert as_user(users, "editor", "abort", NAME, "9").returncode == 1


def test_an_editor_erases_a_tag_with_a_job_that_a_restricted_namespace_admits(
    users: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(binaries()), prepend=os.pathsep)
    keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{NAME}-keys", "namespace": TEAM}}
    owner = replace(OWNER, namespace=TEAM, name=NAME)
    users.apply(trainer_deployment(owner, spec(), CONFIG, 0), keys | {"stringData": {ADMIN_KEY: "key"}})
    command = ("erase", NAME, "--tag", "tenant-7", "--no-wait")
    assert "cannot get resource" in as_user(users, "viewer", *command).stderr
    made = as_user(users, "editor", *command)
    assert made.returncode == 0, made.stderr
    (job,) = users.get("jobs", "-n", TEAM)["items"]
    assert job["metadata"]["name"] in made.stdout
    restricted = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": RESTRICTED, "labels": ENFORCED}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": RESTRICTED}}
    users.apply(restricted, account)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "erase"}, "spec": job["spec"]["template"]["spec"]}
    users.kubectl("create", "--dry-run=server", "-n", RESTRICTED, "-f", "-", stdin=json.dumps(pod))


def test_a_namespace_that_may_not_be_read_is_one_line(users: ApiServer) -> None:
    elsewhere = run(users.kubeconfig_of(TEAM, "viewer"), "status", "-n", "default")
    assert elsewhere.returncode == 1
    assert "cannot list resource" in elsewhere.stderr


def test_a_cluster_without_the_definition_is_named() -> None:
    with api_server() as bare:
        result = run(bare.kubeconfig, "status")
    assert result.returncode == 1
    assert result.stderr.startswith("error: the cluster does not know the kind AuroraSpeculator")
