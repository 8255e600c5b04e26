"""The trainer's StatefulSet: one pod, because one writer registers versions. A suspended trainer still runs.

Invariant: at most one trainer exists: a StatefulSet starts the next pod only when the former is gone.
"""

from __future__ import annotations

from aurora_api.pod import TrainerSettings
from aurora_api.speculator import SpeculatorSpec
from aurora_operator.children.common import (
    TRAINER,
    child,
    container,
    environment,
    pod_template,
    selector,
    store_settings,
)
from aurora_operator.children.inference import SHM_MOUNT, SHM_VOLUME, engine_image
from aurora_operator.config import Config
from aurora_operator.kube import Object
from aurora_operator.observed import Owner


def trainer_name(owner: Owner) -> str:
    return f"{owner.name}-trainer"


def stateful_set(owner: Owner, spec: SpeculatorSpec, config: Config) -> Object:
    value = TrainerSettings(
        namespace=owner.namespace,
        name=owner.name,
        target=spec.target,
        draft=spec.draft.model_copy(update={"pin": None}),
        training=spec.training.model_copy(update={"template": type(spec.training.template)()}),
        store=store_settings(owner, spec),
    )
    text = value.model_dump_json(by_alias=True, exclude_none=True)
    trainer = container(
        "trainer",
        engine_image(spec, config),
        ["aurora_runtime.training"],
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
            "template": pod_template(owner, spec, TRAINER, pod, spec.training.template),
        },
    )
