"""The operator on a real API server, with a real S3 store and real pods (see ``operator_rig``)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, SpeculatorStatus
from aurora_operator.children.metadata import INSTANCE_LABEL
from aurora_operator.kubernetes_api import (
    CHILDREN,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    POD,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    SPECULATOR,
    Resource,
)
from aurora_protocol.evidence_records import VerdictKind
from tests.cluster.command import wait_until
from tests.integration.operator.operator_rig import (
    DEGRADED_VERSION,
    UNLOADABLE_VERSION,
    Rig,
    report_training,
    spec,
)
from tests.unit.operator.worlds import evidence, lineage, registration

NAME = "chat"
ENDPOINT_SLICE = Resource("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")


@pytest.fixture(scope="module", name="rig")
def _rig(operator: Rig) -> Rig:
    return operator


def ready(rig: Rig) -> None:
    """Wait for a speculator with two pods that serve the initial draft. Create the speculator if there is none."""
    rig.apply(NAME, spec(rig.s3))
    registry = rig.registry(NAME)
    report_training(registry)
    if registry.lineage() is None:
        registry.create_lineage(lineage())
        registry.register(registration(0))
    true = {"Ready", "ServingReady"}
    rig.wait(NAME, "ready", lambda s: true <= {c.type for c in s.conditions if c.status == "True"}, timeout=90)


def offer(rig: Rig, version: int, verdict: VerdictKind, active: int) -> None:
    """Register a version, as the trainer does, with evidence that the store has before the Job ends."""
    registry = rig.registry(NAME)
    registry.put_evidence(evidence(version, verdict, active=active))
    registry.register(registration(version))


def test_children_exist_are_owned_and_become_ready(rig: Rig) -> None:
    ready(rig)
    uid = rig.read(SPECULATOR, NAME)["metadata"]["uid"]
    kinds = "deployments,services,serviceaccounts,secrets,poddisruptionbudgets,networkpolicies"
    labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/managed-by=aurora-operator"
    owned = rig.get(kinds, "-l", labels)["items"]
    assert len(owned) == 8
    for child in owned:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (uid, True, True)
    status = rig.status(NAME)
    assert (status.updated, status.ready_replicas) == ("2/2", 2)
    assert status.active is not None
    assert status.active.version == 0
    assert "Ready" in {event["reason"] for event in rig.events(NAME)}


def test_keys_are_generated_once(rig: Rig) -> None:
    ready(rig)
    before = rig.read(SECRET, f"{NAME}-keys")["data"]
    rig.kill()
    rig.start()
    rig.cluster.kubectl("delete", "service", NAME, "-n", rig.namespace)
    wait_until("the Service again", lambda: NAME in {each["metadata"]["name"] for each in rig.list(SERVICE)}, 90)
    assert rig.read(SECRET, f"{NAME}-keys")["data"] == before


def test_kubectl_get_shows_the_documented_columns(rig: Rig) -> None:
    ready(rig)
    table = rig.cluster.kubectl("get", "aspec", "-n", rig.namespace, "-o", "wide")
    header, row = table.strip().splitlines()
    columns = "NAME READY REASON ACTIVE SPEEDUP ACCEPT-LEN UPDATED ROLLOUT AGE"
    wide_columns = "EST-SPEEDUP CANDIDATE TARGET TRAINER-STEP"
    assert header.split() == [*columns.split(), *wide_columns.split()]
    assert row.split()[:3] == [NAME, "True", "Serving"]
    assert NAME in rig.cluster.kubectl("get", "aurora", "-n", rig.namespace)


def test_the_scale_subresource_scales(rig: Rig) -> None:
    ready(rig)
    rig.cluster.kubectl("scale", "auroraspeculator", NAME, "--replicas=3", "-n", rig.namespace)
    try:
        rig.wait(NAME, "three pods", lambda s: s.updated == "3/3")
        scale = json.loads(
            rig.cluster.kubectl(
                "get", "auroraspeculator", NAME, "--subresource=scale", "-n", rig.namespace, "-o", "json"
            )
        )
        assert scale["status"]["replicas"] == 3
        assert "component=inference" in scale["status"]["selector"]
    finally:
        rig.cluster.kubectl("scale", "auroraspeculator", NAME, "--replicas=2", "-n", rig.namespace)
    rig.wait(NAME, "two pods", lambda s: s.updated == "2/2" and s.replicas == 2)


def promoted(rig: Rig) -> SpeculatorStatus:
    """Wait for version 1 to be active. The operator is killed in the middle of that rollout."""
    ready(rig)
    if rig.registry(NAME).last_version() == 0:
        offer(rig, 1, VerdictKind.PASS, active=0)
        rig.wait(NAME, "the canary", lambda s: s.rollout.phase is RolloutPhase.JUDGING)
        rig.kill()
        rig.start()
    return rig.wait(NAME, "version 1 active", lambda s: s.active is not None and s.active.version == 1)


def test_a_draft_that_passes_is_rolled_out_despite_a_killed_operator(rig: Rig) -> None:
    status = promoted(rig)
    assert status.active is not None
    assert status.active.speedup is not None
    assert status.active.speedup.startswith("1.62x")
    assert {pod.version for pod in status.pods} == {1}, status.pods
    channel = rig.registry(NAME).channel()
    assert channel is not None
    assert (channel.active, channel.previous, channel.evidence) == (1, 0, "evidence/00000001/00000001.json")
    assert [entry.event for entry in status.history] == ["Promoted"]


def test_a_new_pod_is_brought_to_the_active_version(rig: Rig) -> None:
    """The stand-in starts on version 0, like a pod that chose its version before a promotion."""
    promoted(rig)
    victim = rig.status(NAME).pods[0].name
    rig.cluster.kubectl("delete", "pod", victim, "-n", rig.namespace, "--wait=false")
    rig.wait(NAME, "replaced", lambda s: victim not in {p.name for p in s.pods} and s.updated == "2/2")
    assert {pod.version for pod in rig.status(NAME).pods} == {1}


def test_a_rejected_draft_is_never_swapped_in(rig: Rig) -> None:
    promoted(rig)
    offer(rig, 2, VerdictKind.REJECT, active=1)
    status = rig.wait(NAME, "rejection", lambda s: 2 in s.rejected)
    assert status.candidate is not None
    assert status.candidate.phase is CandidatePhase.REJECTED
    assert {pod.version for pod in status.pods} == {1}, status.pods


def is_back(status: SpeculatorStatus) -> bool:
    """Whether the roll has ended, and every pod has returned to version 1."""
    return status.rollout.phase is RolloutPhase.IDLE and {pod.version for pod in status.pods} == {1}


def test_a_draft_that_pods_cannot_load_is_rolled_back(rig: Rig) -> None:
    promoted(rig)
    offer(rig, UNLOADABLE_VERSION, VerdictKind.PASS, active=1)
    status = rig.wait(NAME, "rolled back", lambda s: UNLOADABLE_VERSION in s.rejected and is_back(s))
    assert "shapes differ" in status.rollout.message
    assert status.active is not None
    assert status.active.version == 1


def test_a_draft_that_fails_on_live_traffic_is_rolled_back(rig: Rig) -> None:
    promoted(rig)
    offer(rig, DEGRADED_VERSION, VerdictKind.PASS, active=1)
    status = rig.wait(NAME, "rolled back", lambda s: DEGRADED_VERSION in s.rejected and is_back(s))
    assert "live traffic disagrees: acceptance length 1.00 against 2.00" in status.rollout.message
    channel = rig.registry(NAME).channel()
    assert channel is not None
    assert (channel.active, channel.rejected[-1]) == (1, DEGRADED_VERSION)


def patch_rollout(rig: Rig, **parts: Any) -> None:
    patch = json.dumps({"spec": {"rollout": parts}})
    rig.cluster.kubectl("patch", "aspec", NAME, "-n", rig.namespace, "--type=merge", "-p", patch)


def test_a_user_pins_a_version_and_unpins_it(rig: Rig) -> None:
    promoted(rig)
    pods = {pod.name for pod in rig.status(NAME).pods}
    patch_rollout(rig, pin=0)
    status = rig.wait(NAME, "version 0", lambda s: s.updated == "2/2" and {p.version for p in s.pods} == {0})
    assert {pod.name for pod in status.pods} == pods, "no pod was restarted"
    assert status.history[-1].event == "Pinned"
    patch_rollout(rig, pin=77)
    rig.wait(NAME, "refusal", lambda s: any(c.type == "Ready" and c.reason == "PinRefused" for c in s.conditions))
    patch_rollout(rig, pin=1)
    rig.wait(NAME, "version 1", lambda s: s.updated == "2/2" and {p.version for p in s.pods} == {1})
    patch_rollout(rig, pin=None)


def test_a_user_aborts_a_rollout(rig: Rig) -> None:
    promoted(rig)
    version = DEGRADED_VERSION + 1
    patch_rollout(rig, analysis={"watchSeconds": 600})  # a canary of 40 s, so that it outlasts the request
    offer(rig, version, VerdictKind.PASS, active=1)
    rig.wait(NAME, "the canary", lambda s: s.rollout.phase is RolloutPhase.JUDGING and s.rollout.version == version)
    annotation = f"aurora.dev/abort={version}"
    rig.cluster.kubectl("annotate", "aspec", NAME, annotation, "-n", rig.namespace)
    status = rig.wait(NAME, "aborted", lambda s: version in s.rejected and is_back(s))
    assert "aborted by a person" in status.rollout.message
    patch_rollout(rig, analysis={"watchSeconds": 3})


LENT = "lent"


def lent_pod(status: SpeculatorStatus) -> str:
    """The pod that a measurement runs on; empty when there is none."""
    return next((pod.name for pod in status.pods if pod.state == "Measuring"), "")


def start_measurement(rig: Rig, version: int) -> SpeculatorStatus:
    """Register a version, and wait until one of two replicas is withdrawn for the version's Job."""
    rig.registry(LENT).register(registration(version))

    def withdrawn(status: SpeculatorStatus) -> bool:
        measured = status.candidate is not None and status.candidate.version == version
        return measured and bool(lent_pod(status)) and status.ready_replicas == 1

    status = rig.wait(LENT, "a withdrawn replica", withdrawn)
    job = f"{LENT}-validate-v{version}-1"
    wait_until("the Job", lambda: any(j["metadata"]["name"] == job for j in rig.list(JOB)), 30)
    return status


def endpoints(rig: Rig) -> dict[str, bool]:
    """The Service's pods by name, and whether they get requests."""
    slices = rig.list(ENDPOINT_SLICE, f"kubernetes.io/service-name={LENT}")
    return {e["targetRef"]["name"]: e["conditions"]["ready"] for found in slices for e in found.get("endpoints") or ()}


def test_a_replica_is_lent_to_a_measurement_despite_a_killed_operator(rig: Rig) -> None:
    rig.apply(LENT, spec(rig.s3, measure_on="Replica"))
    registry = rig.registry(LENT)
    report_training(registry)
    registry.create_lineage(lineage())
    registry.register(registration(0))
    rig.wait(LENT, "ready", lambda s: s.updated == "2/2", timeout=90)
    status = start_measurement(rig, 1)
    pod = lent_pod(status)
    wait_until("the pod leaves the Service", lambda: endpoints(rig).get(pod) is False, 30)
    assert [ready for name, ready in endpoints(rig).items() if name != pod] == [True]
    budget = rig.read(DISRUPTION_BUDGET, LENT)["status"]
    assert budget["disruptionsAllowed"] == 0, "nothing else may be drained meanwhile"
    job = rig.read(JOB, f"{LENT}-validate-v1-1")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    settings = json.loads(next(v["value"] for v in container["env"] if v["name"] == "AURORA_SETTINGS"))
    assert settings["replica"]["ip"] == rig.read(POD, pod)["status"]["podIP"]
    assert (status.candidate and status.candidate.pod) == pod
    assert any(c.type == "Ready" and c.status == "True" and c.reason == "Measuring" for c in status.conditions)
    rig.kill()
    rig.start()
    registry.put_evidence(evidence(1, VerdictKind.PASS, active=0))
    status = rig.wait(LENT, "version 1 active", lambda s: s.active is not None and s.active.version == 1)
    status = rig.wait(LENT, "both pods", lambda s: s.updated == "2/2")
    assert pod in {p.name for p in status.pods}, "the replica returned; it was not replaced"
    assert {p.version for p in status.pods} == {1}


def test_a_replica_returns_when_a_user_aborts_the_candidate_and_its_job_is_deleted(rig: Rig) -> None:
    start_measurement(rig, 2)
    rig.cluster.kubectl("annotate", "aspec", LENT, "aurora.dev/abort=2", "-n", rig.namespace)
    status = rig.wait(LENT, "both pods", lambda s: s.updated == "2/2" and 2 in s.rejected)
    assert not lent_pod(status)


def test_a_replica_returns_when_its_measurement_fails(rig: Rig) -> None:
    pod = lent_pod(start_measurement(rig, 3))
    status = rig.wait(LENT, "a failure", lambda s: bool(s.candidate and s.candidate.phase is CandidatePhase.FAILED))
    status = rig.wait(LENT, "both pods", lambda s: s.updated == "2/2" and not lent_pod(s))
    assert pod in {p.name for p in status.pods}
    assert status.candidate is not None
    assert "the stand-in measures nothing" in status.candidate.message
    wait_until("the pod is in the Service again", lambda: endpoints(rig).get(pod) is True, 30)
    rig.cluster.kubectl("delete", "auroraspeculator", LENT, "-n", rig.namespace)


def test_a_template_that_the_api_server_refuses_is_reported(rig: Rig) -> None:
    """The container's port is text. The status repeats the API server's refusal."""
    body = spec(rig.s3)
    body["serving"]["template"]["spec"]["containers"][0]["ports"] = [{"containerPort": "many"}]
    rig.apply("refused", body)
    status = rig.wait("refused", "the refusal", lambda s: any(c.reason == "ApplyRefused" for c in s.conditions))
    assert any("containerPort" in c.message for c in status.conditions)
    rig.cluster.kubectl("delete", "auroraspeculator", "refused", "-n", rig.namespace)


TAKEN = "web"
FOREIGN = (SERVICE, SERVICE_ACCOUNT)


def foreign_versions(rig: Rig) -> dict[str, str]:
    """The resourceVersion of each object named ``web`` that is not the speculator's."""
    return {resource.kind: rig.read(resource, TAKEN)["metadata"]["resourceVersion"] for resource in FOREIGN}


def name_taken(status: SpeculatorStatus) -> str:
    """The message of Stalled while a name is taken; empty otherwise."""
    return next((c.message for c in status.conditions if c.type == "Stalled" and c.reason == "NameTaken"), "")


def test_objects_of_other_owners_are_reported_and_never_changed(rig: Rig) -> None:
    """A Service and a ServiceAccount have the speculator's name before the speculator exists."""

    def delete(kind: str) -> None:
        rig.cluster.kubectl("delete", kind, TAKEN, "-n", rig.namespace, "--timeout=30s")

    def owners(resource: Resource) -> list[str]:
        listed = rig.list(resource, f"{INSTANCE_LABEL}={TAKEN}")
        return [reference["uid"] for obj in listed for reference in obj["metadata"].get("ownerReferences", [])]

    metadata = {"name": TAKEN, "namespace": rig.namespace}
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
    rig.cluster.apply(service | {"spec": {"ports": [{"port": 80}], "selector": {"app": "another"}}})
    rig.cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    before = foreign_versions(rig)

    rig.apply(TAKEN, spec(rig.s3, replicas=1))
    message = name_taken(rig.wait(TAKEN, "NameTaken", lambda s: bool(name_taken(s))))
    assert f"Service {TAKEN}" in message
    assert f"ServiceAccount {TAKEN}" in message
    assert owners(DISRUPTION_BUDGET), "the other children exist"
    assert not owners(DEPLOYMENT), "no pod runs under the ServiceAccount of somebody else"
    assert foreign_versions(rig) == before

    delete("auroraspeculator")
    wait_until("garbage collection", lambda: not owners(DISRUPTION_BUDGET), 60)
    assert foreign_versions(rig) == before

    rig.apply(TAKEN, spec(rig.s3, replicas=1))
    rig.wait(TAKEN, "NameTaken", lambda s: bool(name_taken(s)))
    assert foreign_versions(rig) == before
    for resource in FOREIGN:
        delete(resource.kind)
    uid = rig.read(SPECULATOR, TAKEN)["metadata"]["uid"]
    wait_until("our own children", lambda: all(uid in owners(resource) for resource in FOREIGN), 60)
    rig.wait(TAKEN, "free names", lambda s: not name_taken(s))
    delete("auroraspeculator")


def test_a_failed_measurement_shows_its_termination_message_and_rejects_nothing(rig: Rig) -> None:
    """The last version, because the operator measures a failed version again and again until a newer one comes."""
    promoted(rig)
    version = DEGRADED_VERSION + 2
    rig.registry(NAME).register(registration(version))
    status = rig.wait(
        NAME, "a failed attempt", lambda s: s.candidate is not None and s.candidate.phase is CandidatePhase.FAILED
    )
    assert status.candidate is not None
    assert "3 of 8 prompts: wait for traffic" in status.candidate.message
    assert version not in status.rejected


def test_deleting_the_speculator_deletes_everything_even_without_an_operator(rig: Rig) -> None:
    ready(rig)
    rig.kill()
    rig.cluster.kubectl("delete", "auroraspeculator", NAME, "-n", rig.namespace, "--timeout=30s")
    kinds, labels = (*CHILDREN, JOB, SECRET), f"{INSTANCE_LABEL}={NAME}"
    wait_until("garbage collection", lambda: not any(rig.list(kind, labels) for kind in kinds), 60)
