"""What a user's template reaches besides the pods: queues, devices, and the runtime of the containers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import NEEDED_FIELDS
from aurora_api.v1alpha1.validation import FINISH_RESERVE_SECONDS, START_ALLOWANCE_SECONDS
from aurora_operator.children.inference_deployment import deployment, inference_template
from aurora_operator.children.metadata import COMMON_LABELS, selector
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_protocol.pod_settings import EXIT_INTERRUPTED, Replica
from tests.unit.operator.worlds import CONFIG, MINIMAL, OWNER, spec

ATTEMPT = ValidationAttempt(version=2, attempt=1, active=1)
ON_REPLICA = ValidationAttempt(2, 1, 1, Replica(pod="chat-b", ip="10.0.0.2", measurement="chat-validate-v2-1", epoch=3))
ROLES = {"serving": "inference", "training": "trainer", "validation": "validator"}


def workloads(chosen: SpeculatorSpec) -> dict[str, dict[str, Any]]:
    """The objects that make the pods, by the part of the spec that holds their template."""
    return {
        "serving": deployment(OWNER, chosen, inference_template(OWNER, chosen, CONFIG), {}),
        "training": trainer_deployment(OWNER, chosen, CONFIG, 1),
        "validation": job(OWNER, chosen, CONFIG, ATTEMPT),
    }


@pytest.mark.parametrize("part", ROLES)
def test_a_queues_label_reaches_the_pods_and_their_workload(part: str) -> None:
    """Kueue reads the label of a Job or Deployment, and decides before any pod exists."""
    queued = {"template": {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "research"}}}}
    workload = workloads(spec(**{part: queued}))[part]
    for labelled in (workload, workload["spec"]["template"]):
        assert labelled["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


OUR_LABELS = [*selector(OWNER, "x"), *COMMON_LABELS, "aurora.dev/version"]


@given(st.dictionaries(st.sampled_from([*OUR_LABELS, "team"]), st.just("mine")))
def test_no_label_of_a_user_replaces_one_of_ours(labels: dict[str, str]) -> None:
    template = {"template": {"metadata": {"labels": labels}}}
    for name, workload in workloads(spec(serving=template, training=template, validation=template)).items():
        ours = selector(OWNER, ROLES[name]) | COMMON_LABELS
        assert ours.items() <= workload["metadata"]["labels"].items()
        assert ours.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        if name == "validation":
            assert workload["metadata"]["labels"]["aurora.dev/version"] == "2"


@pytest.mark.parametrize("attempt", [ATTEMPT, ON_REPLICA])
def test_a_job_ends_only_after_its_validator_could_start_measure_and_store(attempt: ValidationAttempt) -> None:
    """Kubernetes counts from the Job's start, and loses all rounds of a Job that it ends."""
    for seconds in (60, 3600, 86400):
        made = job(OWNER, spec(validation={"timeoutSeconds": seconds}), CONFIG, attempt)
        deadline = made["spec"]["activeDeadlineSeconds"]
        assert deadline == START_ALLOWANCE_SECONDS + seconds + FINISH_RESERVE_SECONDS


def test_a_job_survives_the_end_of_its_pod_where_another_pod_can_go_on() -> None:
    """Kubernetes counts the pod of a Job that is suspended as failed, unless a rule ignores how the pod ended."""
    rule, evicted = job(OWNER, spec(), CONFIG, ATTEMPT)["spec"]["podFailurePolicy"]["rules"]
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    expected = {"containerName": "validator", "operator": "In", "values": [EXIT_INTERRUPTED]}
    assert (rule["action"], rule["onExitCodes"]) == ("Ignore", expected)
    assert "podFailurePolicy" not in job(OWNER, spec(), CONFIG, ON_REPLICA)["spec"], "its replica is back in service"
    restarts = spec(validation={"template": {"spec": {"restartPolicy": "OnFailure"}}})
    assert "podFailurePolicy" not in job(OWNER, restarts, CONFIG, ATTEMPT)["spec"], "the API server would refuse it"


MAY_BE_REMOVED = {"name", "imagePullPolicy", "lifecycle", "resources", "securityContext"}
"""Fields of our containers without which a container still does its work. The name is the key of the merge."""


@pytest.mark.parametrize("attempt", [ATTEMPT, ON_REPLICA])
def test_every_field_that_our_containers_need_is_one_that_no_template_may_remove(attempt: ValidationAttempt) -> None:
    made = workloads(spec()) | {"validation": job(OWNER, spec(), CONFIG, attempt)}
    pods = [workload["spec"]["template"]["spec"] for workload in made.values()]
    ours = [container for pod in pods for container in (*pod.get("initContainers", ()), *pod["containers"])]
    assert set().union(*ours) - MAY_BE_REMOVED == set(NEEDED_FIELDS)


CLAIM = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}


def claiming(container: str, *claims: dict[str, Any]) -> dict[str, Any]:
    names = [{"name": claim["name"]} for claim in claims]
    engine = {"name": container, "resources": {"claims": names}}
    return {"template": {"spec": {"resourceClaims": [*claims], "containers": [engine]}}}


def test_a_validator_claims_the_same_devices_as_the_engine_unless_its_template_says_otherwise() -> None:
    same = workloads(spec(serving=claiming("sglang", CLAIM)))["validation"]["spec"]["template"]["spec"]
    assert same["resourceClaims"] == [CLAIM]
    assert same["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    other = {"name": "gpu", "resourceClaimName": "reserved"}
    chosen = spec(serving=claiming("sglang", CLAIM), validation={"template": {"spec": {"resourceClaims": [other]}}})
    pod = workloads(chosen)["validation"]["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [other], "a claim has one source, so the two cannot be merged"
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]


def test_the_resources_of_the_spec_serve_engine_trainer_and_validator_and_templates_win() -> None:
    more = {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": 2}}}]}
    given = SpeculatorSpec.model_validate(
        MINIMAL
        | {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "48Gi"}}, "training": {"template": {"spec": more}}}
    )
    found = {
        part: {c["name"]: c.get("resources") for c in workload["spec"]["template"]["spec"]["containers"]}
        for part, workload in workloads(given).items()
    }
    asked = {"limits": {"nvidia.com/gpu": "1", "memory": "48Gi"}}
    assert found["serving"]["sglang"] == found["validation"]["validator"] == asked
    assert found["serving"]["agent"] != asked
    assert found["training"]["trainer"] == {"limits": {"nvidia.com/gpu": 2, "memory": "48Gi"}}
    trainer = workloads(given)["training"]["spec"]["template"]["spec"]["containers"][0]
    assert "--nproc-per-node=2" in trainer["command"]
    client = job(OWNER, given, CONFIG, ON_REPLICA)["spec"]["template"]["spec"]["containers"][0]
    assert "resources" not in client, "it computes nothing"
