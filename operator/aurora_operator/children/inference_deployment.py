"""The inference Deployment: ``stage`` puts the active draft in place, ``sglang`` serves, ``agent`` swaps and uploads.

Invariants: only what serving obeys is in the pod template, so that other parts of the spec never restart a pod; a pod
leaves the Service before its server stops; the engine's container is not given the store's keys (a workload identity is
the pod's, and Kubernetes gives it to every container).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.common import (
    INFERENCE,
    child,
    container,
    container_of,
    environment,
    keys_name,
    mapping,
    pod_template,
    selector,
    store_settings,
)
from aurora_operator.children.owner import Owner
from aurora_operator.children.template_merge import merge
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.pod_settings import KEYS_FOLDER, ServingSettings

AGENT = "aurora_runtime.serving.agent"
DRAIN_SECONDS = 5
"""Endpoints are gone everywhere well within this time; only then may the server be told to stop."""
GRACE_SECONDS = 120
KUBERNETES_GRACE_SECONDS = 30
"""What a pod has that names none."""
SETTLE_SECONDS = 2
"""Containers are told to end at the same moment, and not in the same instant."""
SLEEP = re.compile(r"\bsleep\s+(\d+)")
SPARE_SECONDS = 10
"""Of the grace period, so that an agent ends by itself and can say what was lost."""
AGENT_RESOURCES = {"requests": {"cpu": "100m", "memory": "128Mi"}}
"""Without a share of its own the agent starves beside a busy engine, and its probes with it."""
KEYS_MOUNT = {"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True}
SHM_MOUNT = {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108 - a memory volume
SHM_VOLUME: Object = {"name": "shm", "emptyDir": {"medium": "Memory"}}


def settings(owner: Owner, spec: SpeculatorSpec) -> str:
    """``AURORA_SETTINGS`` of an inference pod."""
    value = ServingSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target,
        draft=spec.draft,
        capture=spec.capture,
        device=spec.serving.device,
        extra_args=spec.serving.extra_args,
        store=store_settings(owner, spec),
    )
    return value.to_variable()


def engine_image(spec: SpeculatorSpec, config: OperatorConfig) -> str:
    return spec.serving.image or config.runtime_image


def pre_stop(pod: Mapping[str, Any], name: str) -> int:
    """Seconds that a container's preStop hook takes, as far as its text tells; ``DRAIN_SECONDS`` where it does not."""
    hook = mapping(mapping(container_of(pod, name).get("lifecycle")).get("preStop"))
    if not hook:
        return 0
    seconds = mapping(hook.get("sleep")).get("seconds")
    words = mapping(hook.get("exec")).get("command")
    told = SLEEP.search(" ".join(map(str, words if isinstance(words, list) else ())))
    return seconds if isinstance(seconds, int) else int(told[1]) if told else DRAIN_SECONDS


def ending(pod: Mapping[str, Any]) -> list[str]:
    """How an agent is to end, from the pod with the users' template merged over it.

    It has what its own hook leaves of the grace period, and must not take the end of the pod for its own alone while
    the engine's hook still runs.
    """
    grace = pod.get("terminationGracePeriodSeconds", KUBERNETES_GRACE_SECONDS)
    agent, engine = pre_stop(pod, "agent"), pre_stop(pod, "sglang")
    within = max(1, (grace if isinstance(grace, int) else GRACE_SECONDS) - agent - SPARE_SECONDS)
    return ["--stop-within", str(within), "--settle", str(max(0, engine - agent) + SETTLE_SECONDS)]


def deployment(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> Object:
    text = settings(owner, spec)
    with_store = environment(spec, text)
    stop = {"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}}
    health = {"path": "/health", "port": ENGINE_PORT}
    engine = container(
        "sglang",
        engine_image(spec, config),
        ["aurora_runtime.serving.launcher"],
        environment(spec, text, store=False),
        ports=[{"name": "http", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        lifecycle=stop,
        startupProbe={"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 720},
        livenessProbe={"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        volumeMounts=[KEYS_MOUNT, SHM_MOUNT],
    )
    agent = container(
        "agent",
        config.agent_image,
        [AGENT, "serve"],
        with_store,
        resources=AGENT_RESOURCES,
        ports=[{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        lifecycle=stop,
        readinessProbe={
            "httpGet": {"path": "/readyz", "port": AGENT_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        livenessProbe={
            "tcpSocket": {"port": AGENT_PORT},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        volumeMounts=[KEYS_MOUNT],
    )
    pod = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "initContainers": [container("stage", config.agent_image, [AGENT, "stage"], with_store)],
        "containers": [engine, agent],
        "volumes": [
            {"name": "keys", "secret": {"secretName": keys_name(owner), "defaultMode": 0o440}},
            SHM_VOLUME,
        ],
    }
    agent["command"] += ending(merge(pod, spec.serving.template.spec))
    return child(
        owner,
        "apps/v1",
        "Deployment",
        owner.name,
        INFERENCE,
        spec={
            "replicas": spec.serving.replicas,
            "selector": {"matchLabels": selector(owner, INFERENCE)},
            "progressDeadlineSeconds": 3900,
            "revisionHistoryLimit": 3,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": spec.serving.update.model_dump(by_alias=True),
            },
            "template": pod_template(owner, spec, config, INFERENCE, pod, spec.serving.template),
        },
    )
