"""How long inference pods may take to become ready, and how much time the agent has when its pod is deleted. Pure.

The startup probe of the engine's container limits how long loading the model may take.

Kubernetes runs the preStop hooks of all containers at the same moment, then sends SIGTERM to each container when its
own hook ends, and kills the pod at the end of the grace period. Two deadlines follow for the agent:

- It must stop by itself before the grace period ends, so that it can still report what was lost.
- It must not conclude that it alone was restarted while the engine's preStop hook still runs.

A user may change probe, hooks and grace period in ``serving.template``, so all are computed from the merged template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from aurora_operator.children.metadata import ENGINE_CONTAINER
from aurora_operator.children.pod_template import container_named, mapping

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


PRE_STOP_SECONDS = 5
"""Time for all nodes to remove the pod from their endpoints. The engine must not stop before."""
GRACE_PERIOD_SECONDS = 120
KUBERNETES_GRACE_PERIOD_SECONDS = 30
"""Kubernetes' default for a pod that sets no grace period."""
SIGTERM_SPREAD_SECONDS = 2
"""Containers get SIGTERM at about the same time, but not at the same instant."""
RESERVED_SECONDS = 10
"""Kept back from the grace period, so that an agent ends by itself and can report what was lost."""
MAX_SECONDS = 2**31 - 1
"""The API server takes longer times, and the agent could not wait for them."""
_SLEEP_COMMAND = re.compile(r"\bsleep\s+(\d{1,10})(?!\d)", re.ASCII)
"""Python refuses to convert a text of more than 4,300 digits."""


def pre_stop_seconds(pod: Mapping[str, Any], name: str) -> int:
    """Seconds that the preStop hook of container ``name`` takes; 0 without a hook.

    A hook that runs a program other than ``sleep`` counts as :data:`PRE_STOP_SECONDS`, since its time is unknown.
    """
    hook = mapping(mapping(container_named(pod, name).get("lifecycle")).get("preStop"))
    if not hook:
        return 0
    seconds = mapping(hook.get("sleep")).get("seconds")
    if isinstance(seconds, int):
        return min(seconds, MAX_SECONDS)
    command = mapping(hook.get("exec")).get("command")
    sleep = _SLEEP_COMMAND.search(" ".join(map(str, command if isinstance(command, list) else ())))
    return min(int(sleep[1]), MAX_SECONDS) if sleep else PRE_STOP_SECONDS


def agent_shutdown_arguments(pod: Mapping[str, Any]) -> list[str]:
    """The agent's command-line arguments for its two deadlines. ``pod`` has the user's template merged over it."""
    grace = pod.get("terminationGracePeriodSeconds", KUBERNETES_GRACE_PERIOD_SECONDS)
    agent, engine = pre_stop_seconds(pod, "agent"), pre_stop_seconds(pod, ENGINE_CONTAINER)
    grace_seconds = min(grace, MAX_SECONDS) if isinstance(grace, int) else GRACE_PERIOD_SECONDS
    shutdown_seconds = max(1, grace_seconds - agent - RESERVED_SECONDS)
    signal_skew_seconds = max(0, engine - agent) + SIGTERM_SPREAD_SECONDS
    return ["--shutdown-seconds", str(shutdown_seconds), "--signal-skew-seconds", str(signal_skew_seconds)]
