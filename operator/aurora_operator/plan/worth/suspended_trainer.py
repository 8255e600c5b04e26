"""The trainer while ``training.suspendWhen`` suspends it: it waits, deletes old traces and holds no GPU. Pure.

Why: the suspension is to free the trainer's devices. A trainer that waits only reads and deletes objects of the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.metadata import TRAINER
from aurora_operator.children.user_template import mapping


def with_suspended_trainer(spec: SpeculatorSpec) -> SpeculatorSpec:
    """``spec`` with training suspended, and without extended resources, such as GPUs, for the trainer's container."""
    training = spec.training
    template = training.template.model_copy(update={"spec": _without_devices(training.template)})
    suspended = training.model_copy(update={"suspended": True, "template": template})
    return spec.model_copy(update={"training": suspended})


def _without_devices(template: PodTemplate) -> dict[str, Any]:
    containers = template.spec.get("containers")
    if not isinstance(containers, list):
        return template.spec
    return {**template.spec, "containers": [_container_without_devices(item) for item in containers]}


def _container_without_devices(container: Any) -> Any:
    resources = mapping(mapping(container).get("resources"))
    if mapping(container).get("name") != TRAINER or not resources:
        return container
    kept = {
        kind: {name: value for name, value in listed.items() if "/" not in str(name)}
        if isinstance(listed, Mapping)
        else listed
        for kind, listed in resources.items()
    }
    return {**container, "resources": kept}
