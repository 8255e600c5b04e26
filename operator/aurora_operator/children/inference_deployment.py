"""The inference Deployment: ``stage`` downloads the active draft, ``sglang`` serves, ``agent`` swaps and uploads.

Invariants:

- The pod template holds only what serving depends on, so changes of other parts of the spec never restart a pod.
- The caller of :func:`deployment` chooses the template, because pods may keep that of an earlier operator for a while.
- A pod leaves the Service before its engine stops. The engine alone decides whether its pod is ready: the agent has no
  probe, and its container does not end when the agent crashes.
- Only the init container gets a key of the channel's signatures.
- The engine's container gets neither the store's keys nor the agent's token. (A workload identity belongs to the pod,
  and Kubernetes gives it to every container.)
- The key of the engine's admin API is the pod's own. The port of that API is also the port for clients, so the API
  cannot listen on the loopback alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from aurora_api.v1alpha1.serving import Strategy
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.common_pod import (
    container,
    container_named,
    environment,
    merge,
    pod_template,
    resources_of,
    store_credentials,
    store_settings,
    with_store_keys,
    with_template_labels,
)
from aurora_operator.children.metadata import (
    AGENT_CONTAINER,
    ENGINE_CONTAINER,
    INFERENCE,
    Owner,
    child,
    keys_name,
    selector,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT, PROBE_HEADER
from aurora_protocol.pod_settings import (
    ADMIN_KEY,
    AGENT_TOKEN,
    ENGINE_KEY_FOLDER,
    KEYS_FOLDER,
    SIGNING_FOLDER,
    ServingSettings,
)
from aurora_protocol.signatures import KeyName

CHOICE_ANNOTATION = "aurora.dev/choice-digest"
"""Digest of what the user chose for the pods, by :func:`choice_digest`."""
TEMPLATE_ANNOTATION = "aurora.dev/template-digest"
"""Digest of the template that the operator made of it."""
RESTART_ANNOTATION = "aurora.dev/upgrade-restart-since"
"""When the pods began to restart because of an upgrade of the operator. Absent once all of them are ready again."""
SIZES_ANNOTATION = "aurora.dev/draft-sizes-known-since"
"""On the pods' template: a pod that was created until this time started with room for drafts of other sizes than the
lineage's. Absent: none did."""
AGENT_MODULE = "aurora_runtime.serving.agent"
SUPERVISOR_MODULE = f"{AGENT_MODULE}.supervisor"
AGENT_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}}
"""Without a CPU request of its own the agent starves beside a busy engine."""
KEYS_MOUNT = {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True}
SIGNING_MOUNT: Object = {"name": "signing", "mountPath": SIGNING_FOLDER, "readOnly": True}
_ENGINE_KEY = "engine-key"
_SPECULATOR_KEY = "speculator-key"
SHM_MOUNT = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108 - a memory volume
SHM_VOLUME: Object = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}

PROBE_PERIOD_SECONDS: Final = 5
PROBE_FAILURES: Final = 720
"""The startup probe allows :data:`PROBE_PERIOD_SECONDS` times this number, one hour, for loading the model."""
BEFORE_ENGINE_SECONDS: Final = 300
"""Allowed on top for all that happens before the engine loads: finding a node, pulling images, staging the draft."""
START_LIMIT: Final = timedelta(seconds=PROBE_PERIOD_SECONDS * PROBE_FAILURES + BEFORE_ENGINE_SECONDS)
"""How long pods may take to become ready, whatever startup probe a user's template sets."""
MAX_SECONDS: Final = 2**31 - 1
"""The API server takes no longer times, and the agent could not wait for them."""
PRE_STOP_SECONDS: Final = 5
"""Time for all nodes to remove the pod from their endpoints. The engine must not stop before."""
GRACE_PERIOD_SECONDS: Final = 120
KUBERNETES_GRACE_PERIOD_SECONDS: Final = 30
"""Kubernetes' default for a pod that sets no grace period."""
RESERVED_SECONDS: Final = 10
"""Kept back from the grace period, so that an agent ends by itself and can report what was lost."""
_LIFECYCLE = {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}}


def serving_settings(owner: Owner, spec: SpeculatorSpec) -> ServingSettings:
    """The settings of an inference pod."""
    return ServingSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target.without_source(),
        draft=spec.draft,
        device=spec.serving.device,
        max_running_requests=spec.serving.max_running_requests,
        extra_args=spec.serving.extra_args,
        store=store_settings(owner, spec),
    )


def engine_image(spec: SpeculatorSpec, config: OperatorConfig) -> str:
    """The image of the engine, the trainer and the validator."""
    return spec.serving.image or config.runtime_image


def served_image(template: Object) -> str:
    """The engine's image in a pod template of the inference Deployment."""
    return str(container_named(template.get("spec", {}), ENGINE_CONTAINER).get("image", ""))


def inference_template(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> Object:
    """The pod template that follows from the spec and from this version of the operator."""
    return pod_template(owner, spec, config, INFERENCE, _pod(owner, spec, config), spec.serving.template)


def choice_digest(owner: Owner, spec: SpeculatorSpec) -> str:
    """Digest of what the user chose for the inference pods: the fields that differ from their defaults.

    A field that another version of the operator added is no change by the user while it has its default.
    """
    settings, serving, source = serving_settings(owner, spec), spec.serving, spec.target.source
    return _digest(
        ({"source": source.model_dump(mode="json", exclude_defaults=True)} if source else {})
        | {
            "image": serving.image,
            "credentials": store_credentials(spec, INFERENCE).model_dump(mode="json", exclude_defaults=True),
            "resources": spec.resources.model_dump(mode="json", exclude_defaults=True),
            "template": serving.template.model_dump(mode="json", exclude_defaults=True),
            "settings": settings.model_dump(mode="json", exclude_defaults=True),
        }
    )


def template_digest(template: Object) -> str:
    """Digest of a pod template that the operator made."""
    return _digest(template)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def deployment(
    owner: Owner, spec: SpeculatorSpec, template: Object, annotations: Mapping[str, str], *, in_place: bool = False
) -> Object:
    """The Deployment of the inference pods.

    Args:
        template: what :func:`inference_template` returns, or the live template while an upgrade waits.
        annotations: the digests of ``template``, which ``plan.operator_upgrade`` compares.
        in_place: no pod may run beyond ``replicas``, whatever the spec's strategy.
    """
    strategy = Strategy(max_surge=0, max_unavailable=1) if in_place else spec.serving.strategy
    made = child(
        owner,
        "apps/v1",
        "Deployment",
        owner.name,
        INFERENCE,
        spec={
            "replicas": spec.serving.replicas,
            "selector": {"matchLabels": selector(owner, INFERENCE)},
            "progressDeadlineSeconds": int(START_LIMIT.total_seconds()),
            "revisionHistoryLimit": 3,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": strategy.model_dump(by_alias=True, include={"max_surge", "max_unavailable"}),
            },
            "template": template,
        },
    )
    made["metadata"]["annotations"] = dict(annotations)
    return with_template_labels(made)


def _pod(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> dict[str, Any]:
    env, credentials = environment(serving_settings(owner, spec).to_variable()), store_credentials(spec, INFERENCE)
    agent = with_store_keys(_agent_container(config, env), credentials)
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "initContainers": [with_store_keys(_stage_container(config, env), credentials)],
        "containers": [_engine_container(spec, config, env), agent],
        "volumes": [
            agent_token_volume(owner),
            _secret_volume(_SPECULATOR_KEY, keys_name(owner), ADMIN_KEY),
            signing_volume(owner, KeyName.CHANNEL),
            {"name": _ENGINE_KEY, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            SHM_VOLUME,
        ],
    }
    agent["command"] += _shutdown_arguments(merge(pod, spec.serving.template.spec))
    return pod


def _shutdown_arguments(pod: Mapping[str, Any]) -> list[str]:
    """How long the agent may take after SIGTERM, so that it ends by itself within the pod's grace period.

    The grace period begins with our preStop hook. A user may change it in ``serving.template``.
    """
    grace = pod.get("terminationGracePeriodSeconds")
    seconds = min(grace, MAX_SECONDS) if isinstance(grace, int) else KUBERNETES_GRACE_PERIOD_SECONDS
    return ["--shutdown-seconds", str(max(1, seconds - PRE_STOP_SECONDS - RESERVED_SECONDS))]


def agent_token_volume(owner: Owner) -> Object:
    """The agent token of the speculator's Secret, without the Secret's other keys."""
    return _secret_volume("keys", keys_name(owner), AGENT_TOKEN)


def signing_volume(owner: Owner, key: KeyName) -> Object:
    """One key of the speculator's Secret that signs records of the store, without the Secret's other keys."""
    return _secret_volume(SIGNING_MOUNT["name"], keys_name(owner), key.value)


def _secret_volume(name: str, secret: str, key: str) -> Object:
    items = [{"key": key, "path": key}]
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440, "items": items}}


def _stage_container(config: OperatorConfig, env: list[Object]) -> Object:
    mounts = [
        {"name": _ENGINE_KEY, "mountPath": ENGINE_KEY_FOLDER},
        {"name": _SPECULATOR_KEY, "mountPath": KEYS_FOLDER, "readOnly": True},
        SIGNING_MOUNT,
    ]
    return container("stage", config.agent_image, [AGENT_MODULE, "stage"], env, volumeMounts=mounts)


def _engine_container(spec: SpeculatorSpec, config: OperatorConfig, env: list[Object]) -> Object:
    health = {"path": "/health", "port": ENGINE_PORT}
    return container(
        ENGINE_CONTAINER,
        engine_image(spec, config),
        ["aurora_runtime.serving.launcher"],
        env,
        **resources_of(spec),
        ports=[{"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        lifecycle=_LIFECYCLE,
        startupProbe={
            "httpGet": health,
            "periodSeconds": PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 5,
            "failureThreshold": PROBE_FAILURES,
        },
        readinessProbe={
            "httpGet": {
                "path": "/ready",
                "port": ENGINE_PORT,
                "httpHeaders": [{"name": PROBE_HEADER, "value": "readiness"}],
            },
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        livenessProbe={"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        volumeMounts=[KEYS_MOUNT | {"name": _ENGINE_KEY}, SHM_MOUNT],
    )


def _agent_container(config: OperatorConfig, env: list[Object]) -> Object:
    return container(
        AGENT_CONTAINER,
        config.agent_image,
        [SUPERVISOR_MODULE, "serve"],
        env,
        resources=AGENT_RESOURCES,
        ports=[{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        lifecycle=_LIFECYCLE,
        volumeMounts=[KEYS_MOUNT, {"name": _ENGINE_KEY, "mountPath": ENGINE_KEY_FOLDER, "readOnly": True}],
    )
