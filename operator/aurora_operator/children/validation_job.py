"""The validation Job: shaped like an inference pod, so that a candidate is measured where it would serve.

On a replica it only drives: no engine, no GPU and nothing of the serving pods' shape but their pull secrets.

Invariant: a Job's name carries version and attempt, and a Job is created once and never changed: one attempt is one
measurement with one set of settings.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.common import (
    ATTEMPT_LABEL,
    VALIDATOR,
    VERSION_LABEL,
    child,
    container,
    environment,
    job_name,
    keys_name,
    pod_template,
    store_settings,
)
from aurora_operator.children.inference_deployment import KEYS_MOUNT, SHM_MOUNT, SHM_VOLUME, engine_image
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import AGENT_TOKEN, Replica, ValidationSettings

KEPT_SECONDS = 3600
"""A finished Job, and with it its log, is kept this long."""


def like_serving(template: PodTemplate) -> PodTemplate:
    """The serving pods' override with the engine's container renamed to ours and the other containers left out."""
    spec: dict[str, Any] = {key: value for key, value in template.spec.items() if key != "initContainers"}
    if "containers" in spec:
        engines = [c for c in spec["containers"] if isinstance(c, dict) and c.get("name") == "sglang"]
        kept = [{key: value for key, value in c.items() if key not in _SERVER_ONLY} for c in engines]
        spec["containers"] = [c | {"name": VALIDATOR} for c in kept]
    return template.model_copy(update={"spec": spec})


def pull_secrets(template: PodTemplate) -> PodTemplate:
    """What a pod on any machine needs to get the image, and no more."""
    kept = {key: value for key, value in template.spec.items() if key == "imagePullSecrets"}
    return PodTemplate(spec=kept)


_SERVER_ONLY = frozenset({"command", "args", "ports", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"})


def shape(spec: SpeculatorSpec) -> str:
    """Digest of what decides how fast an engine is measured to be, beside the draft and the target."""
    pods = [
        spec.serving.model_copy(update={"replicas": 0}).model_dump_json(exclude={"update"}),
        spec.validation.measure_on.value,
    ]
    if spec.validation.measure_on is MeasureOn.JOB:
        pods.append(spec.validation.template.model_dump_json())
    return hashlib.sha256("\n".join(pods).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ValidationAttempt:
    """One attempt to measure ``version`` against ``active``, on a replica or with engines of its own."""

    version: int
    attempt: int
    active: int
    replica: Replica | None = None


def job(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig, made: ValidationAttempt) -> Object:
    """The Job of one measurement."""
    version, attempt, replica = made.version, made.attempt, made.replica
    value = ValidationSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target,
        draft=spec.draft,
        validation=spec.validation.model_copy(update={"template": PodTemplate()}),
        device=spec.serving.device,
        extra_args=spec.serving.extra_args,
        store=store_settings(owner, spec),
        candidate=version,
        active=made.active,
        attempt=attempt,
        image=engine_image(spec, config),
        shape=shape(spec),
        replica=replica,
    )
    text = value.to_variable()
    measure = container(
        VALIDATOR,
        engine_image(spec, config),
        ["aurora_runtime.validation"],
        environment(spec, text),
        volumeMounts=[KEYS_MOUNT if replica else SHM_MOUNT],
    )
    token = {"key": AGENT_TOKEN, "path": AGENT_TOKEN}
    keys = {"name": "keys", "secret": {"secretName": keys_name(owner), "defaultMode": 0o440, "items": [token]}}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "containers": [measure],
        "volumes": [keys if replica else SHM_VOLUME],
    }
    labels = {VERSION_LABEL: str(version), ATTEMPT_LABEL: str(attempt)}
    shaped = pull_secrets(spec.serving.template) if replica else like_serving(spec.serving.template)
    template = pod_template(owner, spec, config, VALIDATOR, pod, shaped, spec.validation.template, **labels)
    obj = child(
        owner,
        "batch/v1",
        "Job",
        job_name(owner.name, version, attempt),
        VALIDATOR,
        spec={
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": spec.validation.timeout_seconds,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": template,
        },
    )
    obj["metadata"]["labels"] |= labels
    return obj
