"""The start of the inference pods: does it go on, since when, and how did its last pod end? Pure.

A start begins with the first pod after the creation of the speculator or a scale-up from zero, and ends when a pod
serves clients. A changed pod template begins it anew.

Why it is stored in the status: a pod that is evicted, preempted, deleted or lost with its node is replaced by a new
one. If the age of the pods were the clock, a start whose pods are replaced again and again would never take too long.
``lastTransitionTime`` of Available cannot be the clock, because neither a scale-up from zero nor a corrected template
changes it.

Invariants: no pod moves the begin of a start. The begin never lies in the future.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, StartStatus
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.conditions.content import SCALED_TO_ZERO

STARTING = "Starting"
"""Reason until a pod serves clients for the first time since the creation or a scale-up from zero."""
START_FAILED = "StartFailed"
"""Reason of a start while a container cannot start, or has not recovered from a crash."""
START_TIMEOUT = "StartTimeout"
"""Reason of a start that takes longer than the engine's startup probe allows."""
START_FAULTS = (START_FAILED, START_TIMEOUT)
CLOCK_TOLERANCE = timedelta(minutes=1)
"""A pod that is older than its start by no more than this belongs to it: the operator sees a changed template late."""


def is_starting(status: SpeculatorStatus) -> bool:
    """Whether no pod has served clients yet since the creation or a scale-up from zero, as far as ``status`` knows."""
    known = next((c for c in status.conditions if c.type is ConditionType.AVAILABLE), None)
    return known is None or known.reason in (SCALED_TO_ZERO, STARTING, *START_FAULTS)


def serving_pods(observed: Observed) -> int:
    """How many pods serve clients."""
    return sum(view.ready and not view.terminating and view.measurement is None for view in observed.pods)


def newest_pods(observed: Observed) -> Sequence[PodView]:
    """The pods that share the newest pod's template."""
    pods = [view for view in observed.pods if not view.terminating]
    dated = [(view.created, view.template_hash) for view in pods if view.created is not None]
    newest = max(dated, default=(None, ""))[1]
    return [view for view in pods if view.template_hash == newest]


def start_of(observed: Observed, now: datetime) -> StartStatus | None:
    """The start that goes on after this observation; None when no pod starts, or none exists yet."""
    if serving_pods(observed) or observed.spec.serving.replicas == 0 or not is_starting(observed.status):
        return None
    template = _digest(observed)
    start = _begun(observed, template, now)
    if start is None:
        return None
    update: dict[str, object] = {"since": min(start.since, now), "template": template or start.template}
    end = observed.replaced_pod
    if end is not None and end.created >= start.since - CLOCK_TOLERANCE:
        update["last_end"] = f"{end.name} ({end.cause})"
    return start.model_copy(update=update)


def _begun(observed: Observed, template: str, now: datetime) -> StartStatus | None:
    known = observed.status.start
    if known is None:
        since = _first_sign(observed)
        return None if since is None else StartStatus(since=since, template=template)
    changed = template and known.template and template != known.template
    return StartStatus(since=now, template=template) if changed else known


def _first_sign(observed: Observed) -> datetime | None:
    """Since when pods exist, or the API server refuses to create them; None when neither is the case."""
    refused = observed.deployment.refused_since if observed.deployment else None
    times = (*(view.created for view in newest_pods(observed)), refused)
    return min((at for at in times if at is not None), default=None)


def _digest(observed: Observed) -> str:
    """Digest of the Deployment's pod template; empty while there is no Deployment."""
    if observed.deployed is None:
        return ""
    return hashlib.sha256(json.dumps(observed.deployed.template, sort_keys=True).encode()).hexdigest()[:16]
