"""Through a speculator's template, its author gets no pod that the author's namespace is not meant for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes.config import new_client_from_config

from aurora_api.v1alpha1.template import NEEDED_FIELDS
from aurora_operator.errors import KubernetesError
from tests.cluster.command import CommandError, wait_until
from tests.integration.chart.conftest import TEAM
from tests.rig.api_server import ApiServer
from tests.rig.chart.rendered_chart import OPERATOR, SAMPLES, render, select
from tests.rig.sync_api import SyncApi

KIND, POLICY = "ValidatingAdmissionPolicy", f"{OPERATOR}-pod-templates"
PRIVILEGED = "team-with-nodes"
PARTS = {"serving": "sglang", "training": "trainer", "validation": "validator"}


def speculator(part: str = "serving", pod: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    store = {"bucket": "abc", "credentials": {"secretRef": {"name": "s3"}}}
    template = {"spec": pod or {}, "metadata": metadata}
    return {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": "author"},
        "spec": {"target": {"model": "m"}, "store": store, part: {"template": template}},
    }


def container(name: str = "sglang", **fields: Any) -> dict[str, Any]:
    return {"containers": [{"name": name, **fields}]}


def secured(**fields: Any) -> dict[str, Any]:
    return container(securityContext=fields)


NODE: list[tuple[dict[str, Any], str]] = [
    ({"hostNetwork": True}, "share the node's network, processes or IPC"),
    ({"hostPID": True}, "share the node's network, processes or IPC"),
    ({"hostIPC": True}, "share the node's network, processes or IPC"),
    ({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}, "mount a folder of the node"),
    ({"volumes": [{"name": "tmp", "hostPath": {"path": "/etc"}}]}, "mount a folder of the node"),
    (container(ports=[{"containerPort": 1, "hostPort": 22}]), "open a port of the node"),
    (secured(privileged=True), "make a container privileged"),
    ({"initContainers": [{"name": "stage", "securityContext": {"privileged": True}}]}, "make a container privileged"),
    ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, "make a container privileged"),
    (secured(capabilities={"add": ["SYS_ADMIN"]}), "add capabilities"),
    (secured(procMount="Unmasked"), "weaken the protection by the kernel"),
    (secured(seccompProfile={"type": "Unconfined"}), "weaken the protection by the kernel"),
    ({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}, "weaken the protection by the kernel"),
    (secured(appArmorProfile={"type": "Unconfined"}), "weaken the protection by the kernel"),
    ({"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}}, "weaken the protection by the kernel"),
    ({"securityContext": {"seLinuxOptions": {"user": "root"}}}, "weaken the protection by the kernel"),
    (container(livenessProbe={"httpGet": {"host": "169.254.169.254", "port": 80}}), "let the node connect to another"),
    (container(lifecycle={"preStop": {"tcpSocket": {"host": "10.0.0.1", "port": 1}}}), "let the node connect to"),
]
IDENTITY: list[dict[str, Any]] = [
    {"serviceAccountName": "admin"},
    {"serviceAccount": "admin"},
    {"automountServiceAccountToken": True},
    {"automountServiceAccountToken": None},
    {"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
]
REMOVED: list[dict[str, Any]] = [
    *({"containers": [{"name": "sglang", field: None}]} for field in NEEDED_FIELDS),
    *({"initContainers": [{"name": "stage", field: None}]} for field in NEEDED_FIELDS),
    container(image=""),
    container(command=[]),
    {"volumes": None},
]
GOOD: list[dict[str, Any]] = [
    {},
    {"nodeSelector": {"gpu": "a100"}, "tolerations": [{"operator": "Exists"}], "hostNetwork": False, "hostIPC": None},
    {"volumes": [{"name": "m", "persistentVolumeClaim": {"claimName": "models"}}, {"name": "c", "configMap": {}}]},
    {"securityContext": None, "topologySpreadConstraints": None},
    {"volumes": [{"name": "p", "projected": {"sources": [{"secret": {"name": "s"}}]}}]},
    {"securityContext": {"runAsUser": 0, "seccompProfile": None, "windowsOptions": None}},
    container(resources={"limits": {"nvidia.com/gpu": 1}}, ports=[{"containerPort": 1}], env=[{"name": "A"}]),
    container(securityContext=None, resources=None, lifecycle=None),
    container(env=[], volumeMounts=[], ports=[], image="mine:1", command=["debug"]),
    secured(capabilities={"drop": ["ALL"]}, privileged=False, seccompProfile={"type": "RuntimeDefault"}),
    secured(capabilities=None, privileged=None),
    container(livenessProbe={"httpGet": {"path": "/health", "port": 1}}, lifecycle={"preStop": {"sleep": {}}}),
]


@pytest.fixture(scope="module", name="policed")
def _policed(server: ApiServer) -> Iterator[SyncApi]:
    """The chart's server, once the policy is at work, with a namespace that may have privileged pods."""
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    metadata = {"name": PRIVILEGED, "labels": labels}
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    with new_client_from_config(str(server.kubeconfig)) as connection:
        api = SyncApi(connection)

        def refuses() -> bool:
            try:
                api.dry_run(speculator(pod={"hostNetwork": True}), TEAM)
            except KubernetesError:
                return True
            return False

        wait_until("the policy is at work", refuses, 60)
        yield api
    server.kubectl("delete", "namespace", PRIVILEGED, "--wait=false")


@pytest.mark.parametrize(("pod", "message"), NODE, ids=[json.dumps(pod)[:60] for pod, _ in NODE])
def test_a_template_that_reaches_for_the_node_is_refused_in_plain_words(
    policed: SyncApi, pod: dict[str, Any], message: str
) -> None:
    with pytest.raises(KubernetesError, match=f"a template must not {message}"):
        policed.dry_run(speculator(pod=pod), TEAM)
    assert policed.dry_run(speculator(pod=pod), PRIVILEGED)


@pytest.mark.parametrize("pod", IDENTITY, ids=[json.dumps(pod)[:60] for pod in IDENTITY])
@pytest.mark.parametrize("namespace", [TEAM, PRIVILEGED])
def test_a_template_that_chooses_an_identity_is_refused_in_plain_words(
    policed: SyncApi, pod: dict[str, Any], namespace: str
) -> None:
    with pytest.raises(KubernetesError, match="a template must not choose an identity"):
        policed.dry_run(speculator(pod=pod), namespace)


@pytest.mark.parametrize("pod", REMOVED, ids=[json.dumps(pod)[:60] for pod in REMOVED])
def test_a_template_that_removes_what_our_containers_need_is_refused(policed: SyncApi, pod: dict[str, Any]) -> None:
    for namespace in (TEAM, PRIVILEGED):
        with pytest.raises(KubernetesError):
            policed.dry_run(speculator(pod=pod), namespace)


OTHER_CHANGES: list[dict[str, Any]] = [
    {"rollout": {"paused": True}},
    {"rollout": {"pin": 0}},
    {"store": {"deletionPolicy": "Delete"}},
    {"store": {"deletionPolicy": "Retain"}},
    {"training": {"suspended": True}},
]
TEMPLATE_CHANGES: list[dict[str, Any]] = [
    {"serving": {"template": {"spec": {"nodeSelector": {"gpu": "a100"}}}}},
    {"training": {"template": {"spec": {"nodeSelector": {"gpu": "a100"}}}}},
    {"serving": {"template": None}, "validation": {"template": {"spec": {"hostNetwork": True}}}},
]


@pytest.mark.usefixtures("policed")
def test_a_resource_from_before_the_policy_is_paused_pinned_and_deleted_but_a_new_template_must_fit(
    server: ApiServer,
) -> None:
    resource = speculator(pod={"hostNetwork": True})
    resource["metadata"]["namespace"] = PRIVILEGED
    server.apply(resource)
    label, name = "pod-security.kubernetes.io/enforce", ("auroraspeculator", "author", "-n", PRIVILEGED)

    def patch(change: dict[str, Any]) -> None:
        server.kubectl("patch", *name, "--type=merge", f"--patch={json.dumps({'spec': change})}")

    server.kubectl("label", "namespace", PRIVILEGED, f"{label}-")
    try:
        server.kubectl("annotate", *name, "aurora.dev/abort=99")
        server.kubectl("scale", *name, "--replicas=0")
        for change in OTHER_CHANGES:
            patch(change)
        for change in TEMPLATE_CHANGES:
            with pytest.raises(CommandError, match="share the node's network"):
                patch(change)
        patch({"serving": {"template": {"spec": {"hostNetwork": None, "nodeSelector": {"gpu": "a100"}}}}})
        server.kubectl("delete", *name)
    finally:
        server.kubectl("label", "namespace", PRIVILEGED, f"{label}=privileged")


@pytest.mark.parametrize("part", PARTS)
def test_each_template_is_checked(policed: SyncApi, part: str) -> None:
    with pytest.raises(KubernetesError, match="make a container privileged"):
        policed.dry_run(speculator(part, container(PARTS[part], securityContext={"privileged": True})), TEAM)
    with pytest.raises(KubernetesError, match="mount a folder of the node"):
        policed.dry_run(speculator(part, {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}), TEAM)


def test_an_annotation_cannot_turn_apparmor_off(policed: SyncApi) -> None:
    annotation = {"container.apparmor.security.beta.kubernetes.io/sglang": "unconfined"}
    with pytest.raises(KubernetesError, match="weaken the protection by the kernel"):
        policed.dry_run(speculator(annotations=annotation), TEAM)


@pytest.mark.parametrize("pod", GOOD, ids=[json.dumps(pod)[:60] for pod in GOOD])
def test_a_usual_template_is_accepted(policed: SyncApi, pod: dict[str, Any]) -> None:
    assert policed.dry_run(speculator(pod=pod), TEAM)


def test_a_cluster_wide_release_restricts_templates_and_one_for_namespaces_does_when_asked() -> None:
    conditions = select(render(), KIND, POLICY)["spec"]["matchConditions"]
    assert [condition["name"] for condition in conditions] == ["a-template-changes"]
    for option in ("podTemplates.restrict=Never", "watchNamespaces={tenant-a}"):
        with pytest.raises(KeyError):
            select(render(f"--set={option}"), KIND, POLICY)
    assert ("In", ["tenant-a"]) in _namespaces(render(values=SAMPLES / "tenant-values.yaml"))


def test_an_exempt_namespace_is_left_out() -> None:
    exempt = render("--set=podTemplates.exemptNamespaces={demo}")
    assert ("NotIn", ["demo"]) in _namespaces(exempt)


def _namespaces(objects: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    spec = select(objects, f"{KIND}Binding", POLICY)["spec"]
    expressions = spec["matchResources"]["namespaceSelector"]["matchExpressions"]
    return [(expression["operator"], expression.get("values", [])) for expression in expressions]
