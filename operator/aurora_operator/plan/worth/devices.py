"""Counts the devices that a container requests, so that the times of trainer and engines can be compared.

Invariant: a count that the template does not name is not guessed. Other extended resources than GPUs, and claims of
dynamic resource allocation, make it unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.user_template import container_named, mapping

CPU: Final = "cpu"
_CORES: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(m?)", re.ASCII)


@dataclass(frozen=True)
class Devices:
    """``count`` devices of one kind: a GPU's resource name, or ``cpu`` for cores."""

    kind: str
    count: Decimal


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
