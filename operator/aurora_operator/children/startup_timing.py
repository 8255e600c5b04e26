"""How long inference pods may take to become ready.

The startup probe of the engine's container limits how long loading the model may take. A user may change the probe in
``serving.template``, so the limit is computed from the merged pod template.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from aurora_operator.children.metadata import ENGINE_CONTAINER
from aurora_operator.children.user_template import container_named, mapping

PROBE_PERIOD_SECONDS: Final = 5
PROBE_FAILURES: Final = 720
"""The probe allows :data:`PROBE_PERIOD_SECONDS` times this number, one hour, for loading the model."""
BEFORE_ENGINE_SECONDS: Final = 300
"""Allowed on top for all that happens before the engine loads: finding a node, pulling images, staging the draft."""
MIN_START_SECONDS: Final = PROBE_PERIOD_SECONDS * PROBE_FAILURES + BEFORE_ENGINE_SECONDS
MAX_START_SECONDS: Final = 2**31 - 1
"""The largest ``progressDeadlineSeconds`` that the API server accepts."""
_KUBERNETES_DEFAULTS: Final = {"initialDelaySeconds": 0, "periodSeconds": 10, "failureThreshold": 3}


def start_deadline(template: Mapping[str, Any]) -> timedelta:
    """How long pods of ``template`` may take to become ready, from the beginning of their start on.

    A shorter probe does not shorten the deadline, because images and the draft may still take long to download. The
    kubelet restarts an engine that fails its probe, and repeated restarts are reported as a failed start.
    """
    pod = mapping(template.get("spec"))
    probe = mapping(container_named(pod, ENGINE_CONTAINER).get("startupProbe"))
    delay, period, failures = (_number(probe, name) for name in _KUBERNETES_DEFAULTS)
    seconds = max(delay + period * failures + BEFORE_ENGINE_SECONDS, MIN_START_SECONDS)
    return timedelta(seconds=min(seconds, MAX_START_SECONDS))


def _number(probe: Mapping[str, Any], name: str) -> int:
    value = probe.get(name)
    return value if isinstance(value, int) else _KUBERNETES_DEFAULTS[name]
