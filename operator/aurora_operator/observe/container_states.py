"""Reads one container's state in a pod's status: does it wait, how did it end, and does it fail? Pure.

Invariant: no text that a container wrote leaves this module, except the termination message of a container that the
caller names. An engine may end with a client's text.
"""

from __future__ import annotations

from datetime import datetime

from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import CRASH_LOOP, RECOVERED_AFTER, ContainerFailure
from aurora_store.errors import bounded_text

MAX_TERMINATION_MESSAGE_CHARACTERS = 1000
"""Length of a trainer's termination message that the status repeats."""
FAILING_RESTARTS = 2
"""A container that ended without a fault of its own counts as failing after this many restarts.

A probe may end a container once. Kubernetes delays the second restart (``CrashLoopBackOff``).
"""
_REQUESTED_EXIT_CODES = (0, 143)
"""Exit codes of a program that was asked to end, for example by a probe. 143 says SIGTERM."""
_NODE_RESTARTED = ("Unknown", "ContainerStatusUnknown")
"""Reasons of a container that ended with its node."""
_NEVER_RAN = ("StartError", "ContainerCannotRun")
"""Reasons of a container whose program the runtime could not run, so that there is no log."""
_NORMAL_WAITING_REASONS = frozenset({"PodInitializing", "ContainerCreating"})


def waiting_reason(container: Object) -> str:
    """Kubernetes' reason why a container waits; empty for one that does not."""
    reason: str = _state(container, "waiting").get("reason", "")
    return reason


def waits_abnormally(container: Object) -> bool:
    return waiting_reason(container) not in {"", *_NORMAL_WAITING_REASONS}


def crash_text(container: Object, explained: str) -> str:
    """How the container ended, while it waits for its restart; else empty. Only ``explained`` adds its own text."""
    ended = _previous_end(container)
    if not ended or not _state(container, "waiting"):
        return ""
    message = ended.get("message", "").strip().partition("\n")[0] if container["name"] == explained else ""
    why = f": {bounded_text(message, MAX_TERMINATION_MESSAGE_CHARACTERS)}" if message else ""
    return f"{container['name']} ended with {_ending(ended)}{why}"


def failure(container: Object, *, initial: bool = False) -> ContainerFailure | None:
    """Why a container cannot start, or ends again; None when nothing is known to be wrong.

    A container that crashed goes on failing while it is restarted. :attr:`ContainerFailure.running_since` says when it
    may have recovered.

    Args:
        initial: the container is an init container. It has done its work when it ends with 0, and has waited in vain
            for something, such as the initial draft, when it ends after a long run.
    """
    ended, held_up = _state(container, "terminated") or _previous_end(container), waits_abnormally(container)
    if initial and _state(container, "terminated").get("exitCode") == 0:
        return None
    if initial and _ran_long(ended) and waiting_reason(container) in ("", CRASH_LOOP, *_NORMAL_WAITING_REASONS):
        return None
    if not held_up and not _ended_by_fault(container, ended):
        return None
    running = _state(container, "running") if container.get("started") else {}
    return ContainerFailure(
        container["name"],
        waiting=waiting_reason(container) if held_up else "",
        ending=_ending(ended) if ended else "",
        ran=ended.get("reason", "") not in _NEVER_RAN,
        running_since=datetime.fromisoformat(running["startedAt"]) if "startedAt" in running else None,
    )


def _ended_by_fault(container: Object, ended: Object) -> bool:
    """Whether ``ended``, the container's last end, is a fault, or one of several ends."""
    requested = ended.get("exitCode") in _REQUESTED_EXIT_CODES or ended.get("reason") in _NODE_RESTARTED
    return bool(ended) and (not requested or container.get("restartCount", 0) >= FAILING_RESTARTS)


def _ran_long(ended: Object) -> bool:
    """Whether the container's last run took as long as a container runs that has recovered from a crash."""
    if not ended.get("startedAt") or not ended.get("finishedAt"):
        return False
    started, finished = (datetime.fromisoformat(ended[at]) for at in ("startedAt", "finishedAt"))
    return finished - started >= RECOVERED_AFTER


def _state(container: Object, name: str) -> Object:
    """The container's ``running``, ``waiting`` or ``terminated``; empty when it is in another state."""
    state: Object = container.get("state", {}).get(name) or {}
    return state


def _previous_end(container: Object) -> Object:
    """How the container ended before it was started again; empty for one that never ended."""
    ended: Object = container.get("lastState", {}).get("terminated") or {}
    return ended


def _ending(ended: Object) -> str:
    """``exit code 137, OOMKilled``."""
    reason = ended.get("reason", "")
    cause = "" if reason in ("", "Completed", "Error") else f", {reason}"
    return f"exit code {ended.get('exitCode', 'unknown')}{cause}"
