"""The start of the inference pods: is one in progress, since when, and how did its last pod end? Pure.

A start begins with the first pod after the creation of the speculator or a scale-up from zero, and ends when a pod
serves clients. A changed pod template restarts its clock.

Why it is stored in the status: a pod that is evicted, preempted, deleted or lost with its node is replaced by a new
one. If the age of the pods were the clock, a start whose pods are replaced again and again would never take too long.
``lastTransitionTime`` of Available cannot be the clock, because neither a scale-up from zero nor a corrected template
changes it.

The deadline is stored too, because a Deployment that is absent for a moment tells no startup probe.

Invariants: no pod moves the beginning of a start. The beginning never lies in the future.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, StartStatus
from aurora_operator.children.pod_timing import start_deadline
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
    return _reason(status) in ("", SCALED_TO_ZERO, STARTING, *START_FAULTS)


def waits_only_for_start(status: SpeculatorStatus) -> bool:
    """Whether Ready is False only because a start is in progress: nothing failed, and its time is not over.

    Ready has the reason of ServingReady unless the store, a failed start or something that requires manual action is
    the cause.
    """
    starting = _reason(status) == STARTING
    return starting and _reason(status, ConditionType.READY) == _reason(status, ConditionType.SERVING_READY)


def _reason(status: SpeculatorStatus, type_: ConditionType = ConditionType.AVAILABLE) -> str:
    """The stored reason of a condition; empty before the first."""
    return next((c.reason for c in status.conditions if c.type is type_), "")


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
    """The start in progress after this observation; None when no pod starts, or none exists yet."""
    if serving_pods(observed) or observed.spec.serving.replicas == 0 or not is_starting(observed.status):
        return None
    template = _digest(observed)
    start = _begun(observed, template, now)
    if start is None:
        return None
    update: dict[str, object] = {"template": template or start.template}
    end = observed.replaced_pod
    if end is not None and end.created >= (start.last_end_created or start.since - CLOCK_TOLERANCE):
        update |= {"last_end": f"{end.name} ({end.cause})", "last_end_created": end.created}
    return start.model_copy(update=update)


def _begun(observed: Observed, template: str, now: datetime) -> StartStatus | None:
    """The start with its clock. After a scale-up from zero it begins now, because older pods may still be there."""
    from_zero = _reason(observed.status) == SCALED_TO_ZERO
    known = None if from_zero else observed.status.start
    if known is None:
        first = _first_sign(observed)
        return None if first is None else _timed(observed, now if from_zero else min(first, now), template)
    changed = template and known.template and template != known.template
    if changed or observed.deployed is not None:
        timed = _timed(observed, now if changed else min(known.since, now), template)
        return timed if changed else known.model_copy(update={"since": timed.since, "deadline": timed.deadline})
    return known


def _timed(observed: Observed, since: datetime, template: str) -> StartStatus:
    limit = start_deadline(observed.deployed.template if observed.deployed else {})
    return StartStatus(since=since, deadline=since + limit, template=template)


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
