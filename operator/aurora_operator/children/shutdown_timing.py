"""How much time the agent has when its pod is deleted.

Kubernetes runs the preStop hooks of all containers at the same moment, then sends SIGTERM to each container when its
own hook ends, and kills the pod at the end of the grace period. Two deadlines follow for the agent:

- It must stop by itself before the grace period ends, so that it can still report what was lost.
- It must not conclude that it alone was restarted while the engine's preStop hook still runs.

Both depend on the hooks and the grace period in the user's template, so they are computed from the merged pod.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aurora_operator.children.metadata import ENGINE_CONTAINER
from aurora_operator.children.user_template import container_named, mapping

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
