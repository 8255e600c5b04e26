"""The trainer's StatefulSet: one pod, because only one writer may register versions.

Invariant: at most one trainer exists, because a StatefulSet starts the next pod only when the former is gone.
A suspended trainer still runs.
"""

from __future__ import annotations

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.inference_deployment import SHM_MOUNT, SHM_VOLUME, engine_image
from aurora_operator.children.metadata import TRAINER, child, selector, trainer_name
from aurora_operator.children.owner import Owner
from aurora_operator.children.pod_template import container, environment, pod_template, store_settings
from aurora_operator.children.user_template import container_named, mapping
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import TrainerSettings

TRAINER_MODULE = "aurora_runtime.training"
GRACE_PERIOD_SECONDS = 60


def gpu_count(template: PodTemplate) -> int:
    """How many GPUs of any vendor (``nvidia.com/gpu``, ``amd.com/gpu``) the trainer's container gets."""
    limits = mapping(mapping(container_named(template.spec, TRAINER).get("resources")).get("limits"))
    counts = [str(count) for name, count in limits.items() if str(name).endswith("/gpu")]
    return sum(int(count) for count in counts if count.isdecimal())


def program(gpus: int) -> list[str]:
    """Arguments of ``python -m``: the trainer, or torchrun with one trainer process for each of several GPUs.

    When one process ends, torchrun ends the others, and the pod ends.
    """
    if gpus < 2:
        return [TRAINER_MODULE]
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m", TRAINER_MODULE]


def trainer_settings(owner: Owner, spec: SpeculatorSpec) -> str:
    """``AURORA_SETTINGS`` of the trainer."""
    value = TrainerSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target,
        draft=spec.draft,
        training=spec.training.model_copy(update={"template": type(spec.training.template)()}),
        store=store_settings(owner, spec),
    )
    return value.to_variable()


def stateful_set(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> Object:
    """The StatefulSet of the trainer."""
    trainer = container(
        TRAINER,
        engine_image(spec, config),
        program(gpu_count(spec.training.template)),
        environment(spec, trainer_settings(owner, spec)),
        volumeMounts=[SHM_MOUNT],
    )
    pod = {
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "containers": [trainer],
        "volumes": [SHM_VOLUME],
    }
    return child(
        owner,
        "apps/v1",
        "StatefulSet",
        trainer_name(owner),
        TRAINER,
        spec={
            "replicas": 1,
            "serviceName": trainer_name(owner),
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": selector(owner, TRAINER)},
            "template": pod_template(owner, spec, config, TRAINER, pod, spec.training.template),
        },
    )
