"""What Helm renders from the chart's values, and which values Helm refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_store.store_policy import StorePolicy, StoreRule
from tests.cluster.command import CommandError, run
from tests.cluster.local.build import binaries
from tests.rig.chart.rendered_chart import (
    CHART,
    OPERATOR,
    SAMPLES,
    operator_environment,
    operator_rights,
    render,
    select,
)

TENANT, EVERYTHING = SAMPLES / "tenant-values.yaml", SAMPLES / "everything-values.yaml"


@pytest.mark.parametrize("values", sorted(SAMPLES.glob("*-values.yaml")), ids=lambda path: path.name)
def test_every_sample_passes_lint_and_renders(values: Path) -> None:
    run(binaries() / "helm", "lint", "--strict", CHART, "-f", values)
    names = [(obj["kind"], obj["metadata"]["name"], obj["metadata"].get("namespace")) for obj in render(values=values)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("part", ["operator", "agent", "runtime"])
def test_an_image_without_a_repository_is_refused_in_words(part: str) -> None:
    with pytest.raises(CommandError, match=rf"images\.{part}\.repository is not set: push the Dockerfile's image"):
        render(f"--set=images.{part}.repository=")


def test_no_image_has_a_default_that_changes_under_its_tag() -> None:
    (container,) = select(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = operator_environment(render())
    images = [container["image"], environment["AURORA_AGENT_IMAGE"], environment["AURORA_RUNTIME_IMAGE"]]
    assert [image.partition(":")[2] for image in images] == ["0.1.0"] * 3


def test_a_digest_decides_instead_of_the_tag() -> None:
    digest = f"sha256:{'0a' * 32}"
    options = [f"--set=images.{part}.digest={digest},images.{part}.tag=v1" for part in ("operator", "agent", "runtime")]
    objects = render(*options)
    (container,) = select(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = operator_environment(objects)
    images = [container["image"], environment["AURORA_AGENT_IMAGE"], environment["AURORA_RUNTIME_IMAGE"]]
    assert [image.partition("@")[2] for image in images] == [digest] * 3
    assert not any(":v1" in image for image in images)


@pytest.mark.parametrize("endpoint", ["http://minio", "https://minio_svc.storage:9000/path", "http://[fd00::1]:65535/"])
def test_an_endpoint_of_a_rule_may_have_a_port_and_a_path(endpoint: str) -> None:
    environment = operator_environment(render(f"--set=stores.allowed[0].endpoint={endpoint}"))
    assert StorePolicy.parse(environment["AURORA_STORE_RULES"]).rules == (StoreRule(endpoint=endpoint),)


@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("--set=replicas=-1", "at '/replicas'"),
        ("--set=replica=2", "additional properties 'replica' not allowed"),
        ("--set=watchNamespaces={a,a}", "at '/watchNamespaces'"),
        ("--set=secretNames={a b}", "at '/secretNames/0'"),
        ("--set=images.agent.repository=a:v1", "at '/images/agent/repository'"),
        ("--set=images.agent.digest=latest", "at '/images/agent/digest'"),
        ("--set=logLevel=LOUD", "at '/logLevel'"),
        ("--set=stores.allowed[0].endpoint=minio:9000", "at '/stores/allowed/0/endpoint'"),
        ("--set=stores.allowed[0].endpoint=http://minio:65536", "at '/stores/allowed/0/endpoint'"),
        ("--set=serviceAccount.create=false", "set serviceAccount.name to the ServiceAccount"),
        ("--set=serviceAccount.name=My Account", "at '/serviceAccount/name'"),
        ("--set=fullnameOverride=1drafts", "at '/fullnameOverride'"),
        ("--set=podLabels.helm\\.sh/chart=mine", "at '/podLabels/helm.sh"),
        ("--set=metrics.interval=soon", "at '/metrics/interval'"),
    ],
)
def test_values_that_cannot_be_used_are_refused_with_their_name(option: str, refusal: str) -> None:
    with pytest.raises(CommandError, match=refusal):
        render(option)


def test_two_pods_spread_over_nodes_and_a_drain_takes_one_at_a_time() -> None:
    objects = render()
    deployment = select(objects, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert {rule["topologyKey"] for rule in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert {rule["whenUnsatisfiable"] for rule in spread} == {"ScheduleAnyway"}
    labels = deployment["template"]["metadata"]["labels"]
    assert all(rule["labelSelector"]["matchLabels"].items() <= labels.items() for rule in spread)
    budget = select(objects, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["selector"]


def test_one_pod_has_no_budget_that_could_block_a_drain() -> None:
    objects = render("--set=replicas=1")
    assert "topologySpreadConstraints" not in select(objects, "Deployment")["spec"]["template"]["spec"]
    with pytest.raises(KeyError):
        select(objects, "PodDisruptionBudget")


def test_an_upgrade_starts_a_standby_before_a_pod_stops() -> None:
    strategy = select(render("--set=replicas=1"), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_own_spread_constraints_replace_the_default() -> None:
    own = {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    options = [f"--set=topologySpreadConstraints[0].{key}={value}" for key, value in own.items()]
    assert select(render(*options), "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"] == [own]


def test_the_operator_is_told_its_lease_and_the_order_of_an_upgrade() -> None:
    environment = operator_environment(render(values=EVERYTHING, release="blue"), "blue-operator")
    assert environment["AURORA_LEASE_NAME"] == "blue-operator"
    assert (environment["AURORA_UPGRADE_MAX_CONCURRENT"], environment["AURORA_UPGRADE_MAX_FAILED"]) == ("5", "2")


def test_the_operator_is_told_the_stores_that_the_administrator_allows() -> None:
    environment = operator_environment(render(values=EVERYTHING))
    policy = StorePolicy.parse(environment["AURORA_STORE_RULES"])
    assert policy.rules == (
        StoreRule(("team-a", "team-b"), "http://minio.storage:9000", "models", "team"),
        StoreRule(bucket="my-aurora-bucket"),
    )
    assert StorePolicy.parse(operator_environment(render())["AURORA_STORE_RULES"]) == StorePolicy(), "any store"


def test_the_operator_is_told_who_may_scrape_agents() -> None:
    environment = operator_environment(render(values=EVERYTHING))
    assert environment["AURORA_SCRAPER_NAMESPACES"] == "monitoring,tracing"
    assert operator_environment(render())["AURORA_SCRAPER_NAMESPACES"] == ""


def test_a_tenants_operator_has_no_right_outside_of_the_tenants_namespace_and_its_own() -> None:
    objects = render(values=TENANT)
    kinds = {obj["kind"] for obj in objects}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"}
    roles = [obj for obj in objects if obj["kind"] == "Role"]
    assert {(role["metadata"]["namespace"], role["metadata"]["name"]) for role in roles} == {
        ("tenant-a", OPERATOR),
        ("aurora-system", f"{OPERATOR}-leader"),
    }
    assert all(right.resource == "leases" for right in operator_rights([obj for obj in objects if _is_own(obj)]))


def _is_own(obj: dict[str, object]) -> bool:
    metadata = obj["metadata"]
    assert isinstance(metadata, dict)
    return metadata.get("namespace") == "aurora-system"


def test_a_tenants_operator_reads_only_the_secrets_that_are_named() -> None:
    secrets = {right for right in operator_rights(render(values=TENANT)) if right.resource == "secrets"}
    assert {(right.verb, right.names) for right in secrets} == {
        ("create", ()),
        ("get", ("my-s3-credentials", "chat-keys")),
    }


def test_a_release_may_change_its_own_lease_only() -> None:
    names = {right.verb: right.names for right in operator_rights(render()) if right.resource == "leases"}
    assert names == {"create": (), "get": (OPERATOR,), "update": (OPERATOR,)}
