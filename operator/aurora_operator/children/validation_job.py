"""The validation Job, which measures a candidate.

A Job with an engine of its own is shaped like an inference pod, so that a candidate is measured on the hardware where
it would serve. A Job that measures on a replica only sends requests: it has no engine, no GPU, and takes only the pull
secrets from the serving pods' template.

Invariant: a Job's name holds version and attempt, and a Job is created once and never changed by us. One attempt is
therefore one measurement with one set of settings. A queue or a person may suspend the Job and resume it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.common_pod import (
    container,
    environment,
    pod_template,
    resources_of,
    store_credentials,
    store_settings,
    with_store_keys,
    with_template_labels,
)
from aurora_operator.children.inference_deployment import (
    KEYS_MOUNT,
    SHM_MOUNT,
    SHM_VOLUME,
    SIGNING_MOUNT,
    agent_token_volume,
    engine_image,
    signing_volume,
)
from aurora_operator.children.metadata import (
    ATTEMPT_LABEL,
    ENGINE_CONTAINER,
    VALIDATOR,
    VERSION_LABEL,
    Owner,
    child,
    job_name,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import EXIT_INTERRUPTED, Replica, ValidationSettings
from aurora_protocol.signatures import KeyName

FINISHED_JOB_TTL_SECONDS = 3600
"""Kubernetes keeps a finished Job, and with it the Job's log, for this long."""
GRACE_PERIOD_SECONDS = 30
_IGNORE_INTERRUPTIONS = {
    "rules": [
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": VALIDATOR, "operator": "In", "values": [EXIT_INTERRUPTED]},
        },
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
}
"""A pod that was deleted or evicted, for example because its Job was suspended, does not fail the Job: another one
follows, also when the pod was evicted before its validator could say so. With ``backoffLimit`` 0 Kubernetes would
otherwise fail each Job that is suspended while its pod runs. The next pod of a Job that measures on
a replica asks for the replica again."""
_SERVING_ONLY = frozenset({"command", "args", "ports", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"})
"""Fields of the engine's container that a validator does not inherit."""


@dataclass(frozen=True)
class ValidationAttempt:
    """One attempt to measure ``version`` against ``active``.

    The attempt measures on ``replica``. Without a replica, the Job runs its own engine.
    """

    version: int
    attempt: int
    active: int
    replica: Replica | None = None
    replica_image: str = ""
    """Image of the replica's engine, which may be that of an earlier version of the operator."""


def validator_template(serving: PodTemplate) -> PodTemplate:
    """The serving pods' template for a validator. The engine's container is renamed, others are left out."""
    spec: dict[str, Any] = {key: value for key, value in serving.spec.items() if key != "initContainers"}
    if "containers" in spec:
        engines = [c for c in spec["containers"] if isinstance(c, dict) and c.get("name") == ENGINE_CONTAINER]
        kept = [{key: value for key, value in c.items() if key not in _SERVING_ONLY} for c in engines]
        spec["containers"] = [c | {"name": VALIDATOR} for c in kept]
    return serving.model_copy(update={"spec": spec})


def validation_settings(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig, attempt: ValidationAttempt) -> str:
    """``AURORA_SETTINGS`` of the validator."""
    value = ValidationSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target.without_source(),
        draft=spec.draft,
        validation=spec.validation.model_copy(update={"template": PodTemplate()}),
        device=spec.serving.device,
        max_running_requests=spec.serving.max_running_requests,
        extra_args=spec.serving.extra_args,
        store=store_settings(owner, spec),
        candidate=attempt.version,
        active=attempt.active,
        attempt=attempt.attempt,
        image=attempt.replica_image or engine_image(spec, config),
        replica=attempt.replica,
    )
    return value.to_variable()


def job(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig, attempt: ValidationAttempt) -> Object:
    """The Job of one attempt."""
    labels = {VERSION_LABEL: str(attempt.version), ATTEMPT_LABEL: str(attempt.attempt)}
    serving = spec.serving.template
    pull_secrets = {key: value for key, value in serving.spec.items() if key == "imagePullSecrets"}
    base = PodTemplate(spec=pull_secrets) if attempt.replica else validator_template(serving)
    pod = _pod(owner, spec, config, attempt)
    # A replica has the model already.
    shown = spec.model_copy(update={"target": spec.target.without_source()}) if attempt.replica else spec
    template = pod_template(owner, shown, config, VALIDATOR, pod, base, spec.validation.template, **labels)
    made = child(
        owner,
        "batch/v1",
        "Job",
        job_name(owner.name, attempt.version, attempt.attempt),
        VALIDATOR,
        spec={
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": spec.validation.job_deadline_seconds,
            "ttlSecondsAfterFinished": FINISHED_JOB_TTL_SECONDS,
            "template": template,
        },
    )
    if attempt.replica is None and template["spec"].get("restartPolicy") == "Never":  # else it would be refused
        made["spec"]["podFailurePolicy"] = _IGNORE_INTERRUPTIONS
    return with_template_labels(made)


def _pod(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig, attempt: ValidationAttempt) -> dict[str, Any]:
    validator = container(
        VALIDATOR,
        engine_image(spec, config),
        ["aurora_runtime.validation"],
        environment(validation_settings(owner, spec, config, attempt)),
        **({} if attempt.replica else resources_of(spec)),
        volumeMounts=[KEYS_MOUNT if attempt.replica else SHM_MOUNT, SIGNING_MOUNT],
    )
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "containers": [with_store_keys(validator, store_credentials(spec, VALIDATOR))],
        "volumes": [
            agent_token_volume(owner) if attempt.replica else SHM_VOLUME,
            signing_volume(owner, KeyName.EVIDENCE),
        ],
    }
