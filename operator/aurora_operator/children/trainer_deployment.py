"""The trainer's Deployment: one pod with all GPUs of the training.

Why a Deployment: when a node is lost, its pod stays in the API server as Terminating. A StatefulSet waits for such a
pod for ever, and nobody trains. A ReplicaSet starts the next pod on another node as soon as the former is being
deleted. Its volumes are empty ones, so nothing binds the trainer to a node.

Invariants:

- A change of the template deletes the former pod first (no surge). The former trainer saves its state, and the next one
  resumes from it. Strategy Recreate would wait for ever for a pod that hangs on a lost node, so the next pod starts as
  soon as the former is being deleted.
- Two trainers at once are possible, while the former one ends, or while a lost node still reaches the store. Each saved
  state then takes the next epoch, create-once. The trainer that loses an epoch ends, and resumes from the other's
  state.

A suspended trainer runs only until the lineage has begun (``plan/wanted_children.py``).
"""

from __future__ import annotations

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.common_pod import (
    container,
    environment,
    gpus_of,
    pod_template,
    resources_of,
    store_credentials,
    store_settings,
    with_store_keys,
    with_template_labels,
)
from aurora_operator.children.inference_deployment import SHM_MOUNT, SHM_VOLUME, engine_image
from aurora_operator.children.metadata import TRAINER, Owner, child, selector, trainer_name
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import TrainerSettings

TRAINER_MODULE = "aurora_runtime.training"
GRACE_PERIOD_SECONDS = 60
_STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def program(gpus: int) -> list[str]:
    """Arguments of ``python -m``: the trainer, or torchrun with one trainer process for each of several GPUs.

    When one process ends, torchrun ends the others, and the pod ends.
    """
    if gpus < 2:
        return [TRAINER_MODULE]
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m", TRAINER_MODULE]


def trainer_settings(owner: Owner, spec: SpeculatorSpec) -> str:
    """``AURORA_SETTINGS`` of the trainer, without what only the operator needs."""
    without = {"template": type(spec.training.template)()}
    value = TrainerSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target.without_source(),
        draft=spec.draft.for_training(),
        training=spec.training.model_copy(update=without),
        store=store_settings(owner, spec),
        device=spec.serving.device,
    )
    return value.to_variable()


def trainer_deployment(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig, replicas: int) -> Object:
    """The Deployment of the trainer, with 1 or 0 pods."""
    trainer = container(
        TRAINER,
        engine_image(spec, config),
        program(sum(gpus_of(spec, spec.training.template, TRAINER).values())),
        environment(trainer_settings(owner, spec)),
        **resources_of(spec),
        volumeMounts=[SHM_MOUNT],
    )
    pod = {
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "containers": [with_store_keys(trainer, store_credentials(spec, TRAINER))],
        "volumes": [SHM_VOLUME],
    }
    template = pod_template(owner, spec, config, TRAINER, pod, spec.training.template)
    made = child(
        owner,
        "apps/v1",
        "Deployment",
        trainer_name(owner),
        TRAINER,
        spec={
            "replicas": replicas,
            "strategy": _STRATEGY,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": selector(owner, TRAINER)},
            "template": template,
        },
    )
    return with_template_labels(made)
