"""The children pass the restricted profile, get only the settings and credentials they need, and take the template."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from pydantic import ValidationError

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import NEEDED_FIELDS
from aurora_api.v1alpha1.validation import FINISH_RESERVE_SECONDS, START_ALLOWANCE_SECONDS
from aurora_operator.children import inference_deployment
from aurora_operator.children.inference_deployment import choice_digest, inference_template, serving_settings
from aurora_operator.children.metadata import COMMON_LABELS, Owner, selector
from aurora_operator.children.supporting_objects import disruption_budgets, new_keys, policies, service_accounts
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.operator_upgrade import decide_upgrade
from aurora_operator.plan.wanted_children import children
from aurora_protocol.agent_api import ENGINE_PORT, PROBE_HEADER
from aurora_protocol.pod_settings import (
    ACCESS_KEY,
    EXIT_INTERRUPTED,
    SECRET_KEY,
    STORE_KEYS_VARIABLE,
    Replica,
    ServingSettings,
    TrainerSettings,
    ValidationSettings,
)
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, OWNER, observed, spec

ATTEMPT = ValidationAttempt(version=2, attempt=1, active=1)
ON_REPLICA = ValidationAttempt(2, 1, 1, Replica(pod="chat-b", ip="10.0.0.2", measurement="chat-validate-v2-1", epoch=3))
PARTS = {"serving": "inference", "training": "trainer", "validation": "validator"}
"""The part of the spec that holds the template of the pods, or their role in the store, and their component."""


def deployment(owner: Owner, given: SpeculatorSpec, config: OperatorConfig) -> dict[str, Any]:
    return inference_deployment.deployment(owner, given, inference_template(owner, given, config), {})


def workloads(given: SpeculatorSpec, config: OperatorConfig = CONFIG) -> dict[str, dict[str, Any]]:
    """The objects that make the pods, by the pods' component."""
    return {
        "inference": deployment(OWNER, given, config),
        "trainer": trainer_deployment(OWNER, given, config, 1),
        "validator": job(OWNER, given, config, ATTEMPT),
    }


def pods(given: SpeculatorSpec, config: OperatorConfig = CONFIG) -> dict[str, dict[str, Any]]:
    return {name: made["spec"]["template"] for name, made in workloads(given, config).items()}


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container["env"]}


@pytest.mark.parametrize("name", ["inference", "trainer", "validator"])
def test_without_a_fixed_user_the_cluster_chooses_the_user(name: str) -> None:
    pod = pods(spec(), CONFIG.model_copy(update={"fixed_user": False}))[name]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize("name", ["inference", "trainer", "validator"])
def test_every_pod_is_restricted(name: str) -> None:
    template = pods(spec())[name]
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    for container in containers(template):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}


def test_settings_hold_no_field_that_the_user_did_not_set_so_an_older_image_can_parse_them() -> None:
    def training(**given: Any) -> dict[str, Any]:
        text = variables(containers(pods(spec(training=given))["trainer"])[0])["AURORA_SETTINGS"]["value"]
        settings: dict[str, Any] = json.loads(text)["training"]
        return settings

    assert training() == {}
    assert training(passes=4) == {"passes": 4}


def test_the_engine_alone_decides_whether_its_pod_is_ready() -> None:
    template = pods(spec())["inference"]
    probes = {c["name"]: c.get("readinessProbe", {}).get("httpGet") for c in containers(template)}
    header = {"name": PROBE_HEADER, "value": "readiness"}
    assert probes == {
        "stage": None,
        "sglang": {"path": "/ready", "port": ENGINE_PORT, "httpHeaders": [header]},
        "agent": None,
    }
    (agent,) = [c for c in containers(template) if c["name"] == "agent"]
    assert not agent.keys() & {"livenessProbe", "startupProbe"}, "a probe that fails ends the container"


@pytest.mark.parametrize(("grace", "within"), [(None, "105"), (600, "585"), (10, "1"), (2**62, "2147483632")])
def test_an_agent_must_stop_within_the_rest_of_the_grace_period(grace: int | None, within: str) -> None:
    given = {} if grace is None else {"serving": {"template": {"spec": {"terminationGracePeriodSeconds": grace}}}}
    template = pods(spec(**given))["inference"]
    (agent,) = [c for c in containers(template) if c["name"] == "agent"]
    assert agent["command"][-2:] == ["--shutdown-seconds", within]
    assert template["spec"]["terminationGracePeriodSeconds"] == (grace or 120)


@pytest.mark.parametrize(
    "change",
    [
        {"validation": {"minImprovement": "0.2"}},
        {"rollout": {"paused": True}},
        {"training": {"suspended": True}},
        {"rollout": {"pin": 1}},
        {"capture": {"tokensPerMinute": 5}},
    ],
)
def test_a_change_that_serving_does_not_depend_on_restarts_no_pod(change: dict[str, Any]) -> None:
    assert deployment(OWNER, spec(**change), CONFIG) == deployment(OWNER, spec(), CONFIG)


GPU = {"limits": {"nvidia.com/gpu": 1}}
SERVING = {
    "template": {
        "metadata": {"labels": {"team": "a", "app.kubernetes.io/instance": "mine"}},
        "spec": {
            "nodeSelector": {"gpu": "yes"},
            "volumes": [{"name": "models", "hostPath": {"path": "/m"}}],
            "containers": [
                {"name": "sglang", "resources": GPU, "command": ["serve"], "env": [{"name": "X", "value": "1"}]},
                {"name": "log-shipper", "image": "shipper"},
            ],
        },
    }
}


def test_the_template_is_merged_and_our_labels_win() -> None:
    template = pods(spec(serving=SERVING))["inference"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["labels"]["app.kubernetes.io/instance"] == "chat"
    names = [c["name"] for c in containers(template)]
    assert names == ["stage", "sglang", "agent", "log-shipper"]
    engine = containers(template)[1]
    assert (engine["resources"], engine["command"]) == (GPU, ["serve"])
    assert {"X", "AURORA_SETTINGS"} <= variables(engine).keys()
    assert "models" in {volume["name"] for volume in template["spec"]["volumes"]}


def test_a_validator_is_shaped_like_an_inference_pod_but_runs_its_own_program() -> None:
    given = spec(serving=SERVING, validation={"template": {"spec": {"priorityClassName": "low"}}})
    template = pods(given)["validator"]
    (container,) = template["spec"]["containers"]
    assert (container["name"], container["resources"]) == ("validator", GPU)
    assert container["command"] == ["python", "-P", "-m", "aurora_runtime.validation"]
    assert template["spec"]["nodeSelector"] == {"gpu": "yes"}
    assert template["spec"]["priorityClassName"] == "low"
    assert template["metadata"]["labels"]["aurora.dev/version"] == "2"
    assert "team" in template["metadata"]["labels"]


def test_no_container_imports_from_its_working_directory() -> None:
    """A template may set the working directory to a folder that another container writes to."""
    for template in pods(spec()).values():
        for each in containers(template):
            assert each["command"][:3] == ["python", "-P", "-m"]
            assert {"PYTHONSAFEPATH", "PYTHONNOUSERSITE"} <= variables(each).keys()


@pytest.mark.parametrize(
    ("limits", "processes"),
    [
        ({}, 1),
        ({"nvidia.com/gpu": "1", "cpu": 8}, 1),
        ("?", 1),
        ({"nvidia.com/gpu": "4", "cpu": "8"}, 4),
        ({"amd.com/gpu": 4}, 4),
    ],
)
def test_a_trainer_has_a_process_for_each_of_its_gpus(limits: Any, processes: int) -> None:
    own = {"name": "trainer", "resources": {"limits": limits}}
    beside = {"name": "watcher", "resources": {"limits": {"nvidia.com/gpu": 1}}}

    def command() -> list[str]:
        given = spec(training={"template": {"spec": {"containers": [beside, own]}}})
        found = next(c for c in pods(given)["trainer"]["spec"]["containers"] if c["name"] == "trainer")
        return list(found["command"])

    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    assert command() == ["python", "-P", *(torchrun if processes > 1 else []), "-m", "aurora_runtime.training"]
    own["command"] = ["mine"]
    assert command() == ["mine"], "the user's template wins"


def test_pods_use_the_charts_pull_settings_and_a_template_adds_to_them() -> None:
    config = CONFIG.model_copy(update={"pull_policy": "Always", "pull_secrets": ("registry",)})
    serving: dict[str, Any] = copy.deepcopy(SERVING)
    serving["template"]["spec"]["imagePullSecrets"] = [{"name": "mine"}]
    given = spec(serving=serving)
    templates = pods(given, config).values()
    names = [[one["name"] for one in made["spec"]["imagePullSecrets"]] for made in templates]
    assert names == [["registry", "mine"], ["registry"], ["registry", "mine"]]
    for made in templates:
        found = {c["name"]: c.get("imagePullPolicy") for c in containers(made)}
        assert {found.pop(name) for name in ("stage", "sglang", "agent", "trainer", "validator") if name in found} == {
            "Always"
        }
        assert set(found.values()) <= {None}, "a container of the user's own keeps Kubernetes' default"


def test_a_validator_that_measures_on_a_replica_gets_only_the_image_and_one_token() -> None:
    secrets = [{"name": "registry"}]
    serving: dict[str, Any] = copy.deepcopy(SERVING)
    serving["template"]["spec"]["imagePullSecrets"] = secrets
    given = spec(
        serving=serving, validation={"template": {"spec": {"priorityClassName": "low"}}, "measureOn": "Replica"}
    )
    made = job(OWNER, given, CONFIG, ON_REPLICA)
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "resources" not in container
    assert "nodeSelector" not in pod
    assert (pod["imagePullSecrets"], pod["priorityClassName"]) == (secrets, "low")
    mounted = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert [[item["key"] for item in one["items"]] for one in mounted] == [
        ["agent-token"],
        ["evidence-key"],
        [ACCESS_KEY, SECRET_KEY],
    ]
    settings = ValidationSettings.from_json(variables(container)["AURORA_SETTINGS"]["value"])
    assert settings.replica == ON_REPLICA.replica
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]


def test_keys_are_random_and_long() -> None:
    first, second = new_keys(OWNER)["stringData"], new_keys(OWNER)["stringData"]
    assert first.keys() == {"admin-key", "agent-token", "channel-key", "evidence-key"}
    assert set(first.values()).isdisjoint(second.values())
    assert all(len(value) >= 40 for value in first.values())


def test_a_users_service_account_is_used_and_none_is_created() -> None:
    store = {"bucket": "bucket", "credentials": {"serviceAccountName": "cloud"}}
    given = spec(store=store)
    assert service_accounts(OWNER, given) == []
    for template in pods(given).values():
        assert template["spec"]["serviceAccountName"] == "cloud"
        assert all(STORE_KEYS_VARIABLE not in variables(c) for c in containers(template))
        assert "store-keys" not in {volume["name"] for volume in template["spec"]["volumes"]}


def test_only_the_operator_reaches_agents_and_validators_too_where_replicas_are_measured() -> None:
    serve, closed = policies(OWNER, spec(), CONFIG)
    (rule,) = (r for r in serve["spec"]["ingress"] if r["ports"][0]["port"] == 8471)
    (peer,) = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "aurora-system"}
    assert "podSelector" in peer
    assert "ingress" not in closed["spec"]
    lent, _ = policies(OWNER, spec(validation={"measureOn": "Replica"}), CONFIG)
    (rule,) = (r for r in lent["spec"]["ingress"] if r["ports"][0]["port"] == 8471)
    assert rule["from"][0] == peer
    (driver,) = rule["from"][1:]
    assert driver["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "validator"
    assert driver["podSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "chat"


def test_children_are_owned_and_named_after_the_speculator() -> None:
    made = children(observed(), CONFIG, decide_upgrade(observed(), CONFIG, NOW))
    assert len({(child["kind"], child["metadata"]["name"]) for child in made}) == len(made) == 7
    for child in made:
        assert child["metadata"]["ownerReferences"][0]["uid"] == OWNER.uid
        assert child["metadata"]["name"].startswith("chat")
    workloads = [child["metadata"]["name"] for child in made if child["kind"] == "Deployment"]
    assert workloads == ["chat-trainer", "chat"], "pods wait for the draft that the trainer makes"


def test_an_update_of_the_trainer_deletes_its_pod_first() -> None:
    made = trainer_deployment(OWNER, spec(), CONFIG, 1)
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert made["spec"]["replicas"] == 1
    volumes = made["spec"]["template"]["spec"]["volumes"]
    kinds = {kind for volume in volumes for kind in volume if kind != "name"}
    assert kinds == {"emptyDir", "secret"}, "nothing binds the trainer to a node"


@pytest.mark.parametrize(
    ("budget", "replicas", "lent", "expected"),
    [
        ({}, 3, 0, [1]),
        ({}, 3, 1, [2]),
        ({}, 2, 1, [1]),
        ({"maxUnavailable": "25%"}, 8, 1, ["25%"]),
        ({"maxUnavailable": 3}, 8, 1, [4]),
        ({"enabled": False}, 3, 1, []),
    ],
    ids=["one at a time", "a lent replica on top", "but one serves", "a share", "a number", "none"],
)
def test_a_drain_takes_what_the_budget_allows(
    budget: dict[str, Any], replicas: int, lent: int, expected: list[int | str]
) -> None:
    made = disruption_budgets(OWNER, spec(serving={"replicas": replicas, "disruptionBudget": budget}).serving, lent)
    assert [found["spec"]["maxUnavailable"] for found in made] == expected


def test_the_cluster_autoscaler_may_move_pods_with_volumes_on_a_nodes_disk_but_no_measurement() -> None:
    def moved(name: str) -> str | None:
        annotations: dict[str, str] = pods(spec())[name]["metadata"].get("annotations", {})
        return annotations.get("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes")

    assert moved("inference") == "tmp-stage,tmp,tmp-agent,state"
    assert moved("trainer") == "tmp,state"
    assert moved("validator") is None


@pytest.mark.parametrize(
    ("source", "env", "volume"),
    [
        ({"huggingFace": {"tokenSecretRef": {"name": "hf"}}}, {"name": "hf", "key": "token"}, None),
        ({"pvc": {"claimName": "m"}}, None, {"persistentVolumeClaim": {"claimName": "m", "readOnly": True}}),
        ({"image": {"reference": "r/m:1"}}, None, {"image": {"reference": "r/m:1"}}),
    ],
    ids=["token", "volume", "image"],
)
def test_whoever_reads_the_target_gets_it_from_its_source(
    source: dict[str, Any], env: dict[str, str] | None, volume: dict[str, Any] | None
) -> None:
    made = pods(spec(target={"model": "/model", "source": source}))
    for role, reader in (("inference", "sglang"), ("trainer", "trainer"), ("validator", "validator")):
        pod = made[role]["spec"]
        assert [
            {k: v for k, v in each.items() if k != "name"} for each in pod["volumes"] if each["name"] == "model"
        ] == ([volume] if volume else [])
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            token = [e["valueFrom"]["secretKeyRef"] for e in container["env"] if e["name"] == "HF_TOKEN"]
            mounts = [m for m in container["volumeMounts"] if m["name"] == "model"]
            reads = container["name"] == reader
            assert token == ([env] if env and reads else [])
            assert mounts == ([{"name": "model", "mountPath": "/model", "readOnly": True}] if volume and reads else [])


def test_another_source_is_a_choice_of_the_user_and_no_setting_of_the_pod() -> None:
    plain, claimed = spec(), spec(target={"model": "m", "source": {"pvc": {"claimName": "a"}}})
    assert choice_digest(OWNER, plain) != choice_digest(OWNER, claimed)
    assert serving_settings(OWNER, claimed).target.source is None


def test_no_node_is_bought_for_a_measurement_unless_its_template_says_so() -> None:
    delay = "cluster-autoscaler.kubernetes.io/pod-scale-up-delay"
    asks = {"metadata": {"annotations": {delay: "0s"}}}
    assert pods(spec())["validator"]["metadata"]["annotations"] == {delay: "1h"}
    assert pods(spec(validation={"template": asks}))["validator"]["metadata"]["annotations"] == {delay: "0s"}


def test_every_pod_gets_the_path_of_the_spec_and_the_owner() -> None:
    for path, root in ((None, "aurora/team/chat"), ("elsewhere/old", "aurora/elsewhere/old")):
        made = pods(spec(store=MINIMAL["store"] | ({"path": path} if path else {})))
        for name, kind in (
            ("trainer", TrainerSettings),
            ("inference", ServingSettings),
            ("validator", ValidationSettings),
        ):
            settings = kind.from_json(variables(containers(made[name])[0])["AURORA_SETTINGS"]["value"]).store
            assert (settings.root, settings.owner) == (root, "01234567")


# what a user's template reaches besides the pods ----------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_queues_label_reaches_the_pods_and_their_workload(part: str) -> None:
    """Kueue reads the label of a Job or Deployment, and decides before any pod exists."""
    queued = {"template": {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "research"}}}}
    workload = workloads(spec(**{part: queued}))[PARTS[part]]
    for labelled in (workload, workload["spec"]["template"]):
        assert labelled["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


OUR_LABELS = [*selector(OWNER, "x"), *COMMON_LABELS, "aurora.dev/version"]


@hypothesis_given(st.dictionaries(st.sampled_from([*OUR_LABELS, "team"]), st.just("mine")))
def test_no_label_of_a_user_replaces_one_of_ours(labels: dict[str, str]) -> None:
    template = {"template": {"metadata": {"labels": labels}}}
    for name, workload in workloads(spec(serving=template, training=template, validation=template)).items():
        ours = selector(OWNER, name) | COMMON_LABELS
        assert ours.items() <= workload["metadata"]["labels"].items()
        assert ours.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        if name == "validator":
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
    made = workloads(spec()) | {"validator": job(OWNER, spec(), CONFIG, attempt)}
    pods = [workload["spec"]["template"]["spec"] for workload in made.values()]
    ours = [container for pod in pods for container in (*pod.get("initContainers", ()), *pod["containers"])]
    assert set().union(*ours) - MAY_BE_REMOVED == set(NEEDED_FIELDS)


CLAIM = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}


def claiming(container: str, *claims: dict[str, Any]) -> dict[str, Any]:
    names = [{"name": claim["name"]} for claim in claims]
    engine = {"name": container, "resources": {"claims": names}}
    return {"template": {"spec": {"resourceClaims": [*claims], "containers": [engine]}}}


def test_a_validator_claims_the_same_devices_as_the_engine_unless_its_template_says_otherwise() -> None:
    same = workloads(spec(serving=claiming("sglang", CLAIM)))["validator"]["spec"]["template"]["spec"]
    assert same["resourceClaims"] == [CLAIM]
    assert same["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    other = {"name": "gpu", "resourceClaimName": "reserved"}
    chosen = spec(serving=claiming("sglang", CLAIM), validation={"template": {"spec": {"resourceClaims": [other]}}})
    pod = workloads(chosen)["validator"]["spec"]["template"]["spec"]
    assert pod["resourceClaims"] == [other], "a claim has one source, so the two cannot be merged"
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]


def test_the_resources_of_the_spec_serve_engine_trainer_and_validator_and_templates_win() -> None:
    more = {"containers": [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": 2}}}]}
    given = SpeculatorSpec.model_validate(
        MINIMAL
        | {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "48Gi"}}, "training": {"template": {"spec": more}}}
    )
    found = {
        name: {c["name"]: c.get("resources") for c in workload["spec"]["template"]["spec"]["containers"]}
        for name, workload in workloads(given).items()
    }
    asked = {"limits": {"nvidia.com/gpu": "1", "memory": "48Gi"}}
    assert found["inference"]["sglang"] == found["validator"]["validator"] == asked
    assert found["inference"]["agent"] != asked
    assert found["trainer"]["trainer"] == {"limits": {"nvidia.com/gpu": 2, "memory": "48Gi"}}
    trainer = workloads(given)["trainer"]["spec"]["template"]["spec"]["containers"][0]
    assert "--nproc-per-node=2" in trainer["command"]
    client = job(OWNER, given, CONFIG, ON_REPLICA)["spec"]["template"]["spec"]["containers"][0]
    assert "resources" not in client, "it computes nothing"


# each role's pods get the credentials of their role -------------------------------------------------------------------


KEYS = {"secretRef": {"name": "s3"}}


def store(**more: Any) -> dict[str, Any]:
    return {"store": {"bucket": "bucket", "credentials": KEYS | {"roles": more}}}


def secrets(template: dict[str, Any]) -> set[str]:
    """The Secrets with the store's keys that the containers mount where their variable says."""
    volumes = {v["name"]: v["secret"] for v in template["spec"]["volumes"] if "secret" in v}
    mounts = [
        volumes[mount["name"]]
        for container in containers(template)
        for mount in container["volumeMounts"]
        if mount["mountPath"] == variables(container).get(STORE_KEYS_VARIABLE, {}).get("value")
    ]
    assert all([item["path"] for item in one["items"]] == [ACCESS_KEY, SECRET_KEY] for one in mounts)
    assert all(one["optional"] for one in mounts), "serving does not need the store"
    return {one["secretName"] for one in mounts}


@pytest.mark.parametrize(("role", "pod"), PARTS.items())
def test_a_role_with_a_secret_takes_its_keys_from_it_and_the_others_from_the_common_one(role: str, pod: str) -> None:
    made = pods(spec(**store(**{role: "own"})))
    assert {name: secrets(template) for name, template in made.items()} == {
        name: {"own"} if name == pod else {"s3"} for name in made
    }


@pytest.mark.parametrize(("role", "pod"), PARTS.items())
def test_a_role_gets_its_own_service_account_where_identities_come_from_the_cloud(role: str, pod: str) -> None:
    given = spec(store={"bucket": "bucket", "credentials": {"serviceAccountName": "cloud", "roles": {role: "own"}}})
    made = pods(given)
    assert {name: template["spec"]["serviceAccountName"] for name, template in made.items()} == {
        name: "own" if name == pod else "cloud" for name in made
    }
    assert secrets(made[pod]) == set()
    assert service_accounts(OWNER, given) == []


def test_only_the_credentials_of_serving_count_as_a_change_of_the_inference_pods() -> None:
    before = choice_digest(OWNER, spec())
    for role in ("training", "validation"):
        assert choice_digest(OWNER, spec(**store(**{role: "own"}))) == before
    assert choice_digest(OWNER, spec(**store(serving="own"))) != before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"credentials": KEYS | {"serviceAccountName": "b"}}, "exactly one of secretRef and serviceAccountName"),
        ({"credentials": KEYS | {"roles": {"operator": "own"}}}, "serving"),
    ],
)
def test_a_contradiction_is_refused_in_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(store={"bucket": "bucket", "credentials": KEYS} | wrong)


def test_pods_get_the_scope_of_lookup_the_shape_and_the_limit_of_requests() -> None:
    given = spec(draft={"lookup": "Speculator", "shape": "Fixed"}, serving={"maxRunningRequests": 64})
    settings = serving_settings(OWNER, given)
    sent = ServingSettings.from_json(settings.to_variable())
    assert (sent.draft.lookup, sent.draft.adaptive, sent.max_running_requests) == ("Speculator", False, 64)
