"""The trainer's StatefulSet: one pod, because one writer registers versions. A suspended trainer still runs.

Invariant: at most one trainer exists: a StatefulSet starts the next pod only when the former is gone.
"""

from __future__ import annotations

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.common import (
    TRAINER,
    child,
    container,
    container_of,
    environment,
    mapping,
    pod_template,
    selector,
    store_settings,
)
from aurora_operator.children.inference_deployment import SHM_MOUNT, SHM_VOLUME, engine_image
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.pod_settings import TrainerSettings

MODULE = "aurora_runtime.training"


def trainer_name(owner: Owner) -> str:
    return f"{owner.name}-trainer"


def gpus(template: PodTemplate) -> int:
    """How many GPUs of any vendor (``nvidia.com/gpu``, ``amd.com/gpu``) the trainer's container is given."""
    limits = mapping(mapping(container_of(template.spec, TRAINER).get("resources")).get("limits"))
    counts = [str(count) for name, count in limits.items() if str(name).endswith("/gpu")]
    return sum(int(count) for count in counts if count.isdecimal())


def program(count: int) -> list[str]:
    """The trainer's module; on several GPUs under torchrun, a process for each, of which one that ends ends the pod."""
    if count < 2:
        return [MODULE]
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", MODULE]


def stateful_set(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> Object:
    value = TrainerSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target,
        draft=spec.draft,
        training=spec.training.model_copy(update={"template": type(spec.training.template)()}),
        store=store_settings(owner, spec),
    )
    text = value.to_variable()
    trainer = container(
        TRAINER,
        engine_image(spec, config),
        program(gpus(spec.training.template)),
        environment(spec, text),
        volumeMounts=[SHM_MOUNT],
    )
    pod = {"terminationGracePeriodSeconds": 60, "containers": [trainer], "volumes": [SHM_VOLUME]}
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
