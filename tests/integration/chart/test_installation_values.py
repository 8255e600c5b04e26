"""Names, accounts, users and additions of a release, and its notes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api.v1alpha1.spec import SpeculatorSpec
from tests.cluster.command import CommandError
from tests.rig.chart.rendered_chart import (
    CHART,
    IMAGES,
    NAMESPACE,
    OPERATOR,
    RELEASE,
    SAMPLES,
    Object,
    built_helm,
    operator_environment,
    render,
    select,
)

EVERYTHING, TENANT = (SAMPLES / f"{name}-values.yaml" for name in ("everything", "tenant"))
MONITORED = ("--set=metrics.podMonitor.enabled=true", "--set=metrics.dashboard.enabled=true")


def _named(objects: list[Object], kind: str) -> set[str]:
    return {obj["metadata"]["name"] for obj in objects if obj["kind"] == kind}


def _pods(objects: list[Object]) -> list[dict[str, Any]]:
    """The pods of the release, from workloads and hooks."""
    return [obj["spec"] if obj["kind"] == "Pod" else obj["spec"]["template"]["spec"] for obj in objects
            if obj["kind"] in ("Pod", "Deployment")]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "release", "name"),
    [
        ("--set=fullnameOverride=drafts", "aurora", "drafts"),
        ("--set=replicas=2", "my-operator", "my-operator"),
    ],
)
def test_all_objects_of_a_release_have_the_name_that_values_choose(option: str, release: str, name: str) -> None:
    objects = render(option, *MONITORED, release=release)
    assert {obj["metadata"]["name"].removeprefix(name)[:1] for obj in objects} == {"", "-"}
    account, bindings = _named(objects, "ServiceAccount"), [o for o in objects if o["kind"].endswith("RoleBinding")]
    assert account == {name} == {subject["name"] for binding in bindings for subject in binding["subjects"]}
    assert {binding["roleRef"]["name"] for binding in bindings} <= {
        obj["metadata"]["name"] for obj in objects if obj["kind"] in ("Role", "ClusterRole")
    }
    environment = operator_environment(objects, name)
    leader = select(objects, "Role", f"{name}-leader")
    assert leader["rules"][1]["resourceNames"] == [environment["AURORA_LEASE_NAME"]] == [name]


@pytest.mark.parametrize("release", ["1-aurora", "aurora.blue", "a" * 47])
def test_a_release_name_that_cannot_name_a_service_needs_a_full_name(release: str) -> None:
    with pytest.raises(CommandError, match="set fullnameOverride to a name that begins with a letter"):
        render(release=release)
    assert select(render("--set=fullnameOverride=drafts", release=release), "Service", "drafts-metrics")


def test_the_longest_name_of_the_releases_objects_fits_into_its_service() -> None:
    services = _named(render(release="a" * 46), "Service")
    assert {len(name) for name in services} == {63}


def test_speculators_policies_admit_the_operator_whatever_its_name() -> None:
    labels = select(render("--set=fullnameOverride=drafts"), "Deployment", "drafts")["spec"]["template"]["metadata"]
    assert labels["labels"]["app.kubernetes.io/name"] == "aurora-operator"


@pytest.mark.parametrize(("created", "accounts"), [("true", {"cloud"}), ("false", set[str]())])
def test_an_account_may_have_a_name_of_its_own_and_may_exist_already(created: str, accounts: set[str]) -> None:
    objects = render(f"--set=serviceAccount.create={created},serviceAccount.name=cloud")
    assert _named(objects, "ServiceAccount") == accounts
    bindings = [obj for obj in objects if obj["kind"].endswith("RoleBinding")]
    assert {subject["name"] for binding in bindings for subject in binding["subjects"]} == {"cloud"}
    assert {pod["serviceAccountName"] for pod in _pods(objects)} == {"cloud"}


def test_pods_mount_the_token_of_their_account_exactly_where_they_speak_to_the_api_server() -> None:
    """A pod's own word wins over its ServiceAccount, which may be one that mounts no token."""
    objects = render("--set=embeddedStore.enabled=true")
    mounted = {pod["containers"][0]["name"]: pod["automountServiceAccountToken"] for pod in _pods(objects)}
    assert mounted == {"operator": True, "weed": False}


def test_labels_of_pods_are_added_to_those_of_the_chart() -> None:
    deployment = select(render("--set=podLabels.team=inference"), "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels["team"] == "inference"
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert "team" not in deployment["selector"]["matchLabels"], "a selector cannot change"


def test_without_a_fixed_user_no_pod_asks_for_one() -> None:
    fixed, free = render(), render(values=EVERYTHING)
    assert {pod["securityContext"]["runAsUser"] for pod in _pods(fixed)} == {10001}
    assert len(_pods(free)) == 2, "operator and embedded store"
    for pod in _pods(free):
        assert set(pod["securityContext"]) == {"runAsNonRoot", "seccompProfile"}
        for container in pod["containers"]:
            assert "runAsUser" not in container["securityContext"]
    told = [operator_environment(objects)["AURORA_FIXED_USER"] for objects in (fixed, free)]
    assert told == ["true", "false"]


def test_releases_of_two_tenants_share_no_object_of_the_cluster() -> None:
    """The policy of pod templates has no namespace, so the name of the release keeps two of them apart."""

    def of_the_cluster(tenant: str) -> set[tuple[str, str]]:
        objects = render(values=TENANT, release=f"aurora-{tenant}", namespace=f"aurora-{tenant}")
        return {(obj["kind"], obj["metadata"]["name"]) for obj in objects if "namespace" not in obj["metadata"]}

    first, second = of_the_cluster("tenant-a"), of_the_cluster("tenant-b")
    assert {kind for kind, _ in first} == {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert not first & second


@pytest.mark.parametrize("enabled", [True, False])
def test_another_chart_may_depend_on_this_one_on_a_condition_and_share_global_values(
    tmp_path: Path, enabled: bool
) -> None:
    wrapper, values = tmp_path / "wrapper", tmp_path / "values.yaml"
    shutil.copytree(CHART, wrapper / "charts/aurora-operator")
    chart = {"apiVersion": "v2", "name": "wrapper", "version": "0.1.0"}
    dependency = {"name": "aurora-operator", "version": "*", "condition": "aurora-operator.enabled"}
    (wrapper / "Chart.yaml").write_text(yaml.safe_dump(chart | {"dependencies": [dependency]}))
    own = yaml.safe_load(IMAGES.read_text()) | {"enabled": enabled}
    values.write_text(json.dumps({"global": {"team": "inference"}, "aurora-operator": own}))
    text = built_helm("template", RELEASE, wrapper, "-n", NAMESPACE, "-f", values)
    made = [obj for obj in yaml.safe_load_all(text) if obj and obj["kind"] != "CustomResourceDefinition"]
    assert made == (render() if enabled else [])


def test_a_new_version_of_the_chart_leaves_the_embedded_stores_pod_alone(tmp_path: Path) -> None:
    """Another pod would begin with an empty volume, and all traces and drafts would be lost."""
    newer = tmp_path / CHART.name
    shutil.copytree(CHART, newer)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "0.2.0", "appVersion": "0.2.0"}))
    store = "--set=embeddedStore.enabled=true,embeddedStore.accessKey=a,embeddedStore.secretKey=b"

    def templates(folder: Path) -> list[Object]:
        text = built_helm("template", RELEASE, folder, "-n", NAMESPACE, "-f", IMAGES, store)
        objects = [obj for obj in yaml.safe_load_all(text) if obj]
        return [select(objects, "Deployment", name)["spec"]["template"] for name in ("aurora-store", OPERATOR)]

    (store_before, operator_before), (store_after, operator_after) = templates(CHART), templates(newer)
    assert store_before == store_after
    assert operator_before != operator_after, "the operator's pods do restart"


def _notes(values: Path, *options: str) -> str:
    """What Helm prints after an installation."""
    printed = built_helm("install", RELEASE, CHART, "-n", NAMESPACE, "-f", values, *options, "--dry-run=client")
    return printed.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize(
    ("values", "namespace"),
    [(IMAGES, "default"), (TENANT, "tenant-a")],
    ids=lambda value: str(value),
)
def test_the_notes_name_a_namespace_that_the_operator_watches(values: Path, namespace: str) -> None:
    notes = _notes(values)
    commands = [line for line in notes.splitlines() if line.strip().startswith("kubectl") and " -n " in line]
    assert len(commands) == 3
    assert all(f" -n {namespace} " in command for command in commands)


@pytest.mark.parametrize(
    "options",
    [(), ("--set=embeddedStore.enabled=true",)],
    ids=["own store", "embedded store"],
)
def test_the_printed_commands_can_be_pasted_into_a_shell(options: tuple[str, ...]) -> None:
    paragraphs = _notes(IMAGES, *options).split("\n\n")
    commands = [text for text in paragraphs if text.strip().startswith(("kubectl", "helm"))]
    assert len(commands) >= 3
    for command in commands:
        parsed = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True, check=True)
        assert parsed.stderr == "", "bash warns of a here-document without an end"
    (manifest,) = [text.partition("<<END\n")[2].partition("\nEND")[0] for text in commands if "<<END" in text]
    SpeculatorSpec.model_validate(yaml.safe_load(manifest)["spec"], extra="forbid")
