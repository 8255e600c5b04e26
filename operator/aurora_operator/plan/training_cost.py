"""What training holds and what speculation saves, in devices, for the status. Pure.

Nothing follows from these figures: a person compares them, and sets ``training.suspended``.

Invariant: a figure that was not observed is unknown. One ready pod without an estimate makes the saving unknown,
because the others say nothing about it. A count that a template does not name is not guessed: other extended resources
than GPUs, and claims of dynamic resource allocation, make it unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.metadata import ENGINE_CONTAINER, TRAINER
from aurora_operator.children.pod_template import container_named, mapping
from aurora_operator.observe.observed import Observed

CPU: Final = "cpu"
MIN_OBSERVED: Final = timedelta(minutes=10)
"""An engine's estimate counts once it covers so much time."""
_CORES: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(m?)", re.ASCII)


@dataclass(frozen=True)
class Devices:
    """``count`` devices of one kind: a GPU's resource name, or ``cpu`` for cores."""

    kind: str
    count: Decimal


def held_devices(observed: Observed) -> str | None:
    """The devices that the trainer holds, such as ``1 nvidia.com/gpu``. None: training is suspended, or not known."""
    training = observed.spec.training
    devices = None if training.suspended else devices_of(training.template, TRAINER)
    return None if devices is None else f"{devices.count:f} {devices.kind}"


def saved_devices(observed: Observed) -> str | None:
    """The devices that inference pods would need more without speculation, by the engines' estimate. None: unknown."""
    engine = devices_of(observed.spec.serving.template, ENGINE_CONTAINER)
    serving = [pod for pod in observed.pods if pod.ready and not pod.terminating and pod.measurement is None]
    if engine is None or not serving:
        return None
    shares = []
    for pod in serving:
        saved = pod.agent.saved_time if pod.agent is not None else None
        if saved is None or saved.observed_seconds < MIN_OBSERVED.total_seconds():
            return None
        shares.append(saved.share)
    return f"{sum(shares) * float(engine.count):.2f} {engine.kind}"


def devices_of(template: PodTemplate, container: str) -> Devices | None:
    """The GPUs that ``container`` gets, else its cores by limit or request. None: the template does not say."""
    resources = mapping(container_named(template.spec, container).get("resources"))
    limits, requests = mapping(resources.get("limits")), mapping(resources.get("requests"))
    if resources.get("claims"):
        return None
    extended = {name: value for name, value in {**requests, **limits}.items() if "/" in str(name)}
    if extended:
        return _gpus(extended)
    cores = _cores(limits.get(CPU, requests.get(CPU)))
    return Devices(CPU, cores) if cores else None


def _gpus(extended: Mapping[str, Any]) -> Devices | None:
    """The devices, when all extended resources are GPUs of one kind."""
    (name, value), *others = extended.items()
    text = str(value)
    if others or not name.endswith("/gpu") or re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII) is None:
        return None
    return Devices(name, Decimal(text))


def _cores(value: Any) -> Decimal:
    """``2``, ``1.5`` or ``500m`` as a number. 0 for anything else."""
    match = _CORES.fullmatch(str(value))
    return Decimal(0) if match is None else Decimal(match[1]) / (1000 if match[2] else 1)
