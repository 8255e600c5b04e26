"""The condition Available: does a pod serve clients and, while none does, does the start go well? Pure.

Invariant: while a pod lives, or the API server refuses to create pods, ``Starting`` becomes ``PodsServe``,
``StartFailed`` or ``StartTimeout``. The time limit follows from the engine's startup probe
(``children.startup_timing``).

A pod's age serves as the clock, because ``lastTransitionTime`` of Available does not change with a scale-up from zero.
Only pods of the newest template count, so a corrected template gets the whole time again. A pod that replaces an
evicted one gets it again too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.startup_timing import start_deadline
from aurora_operator.observe.observed import ContainerFailure, Observed, PodView
from aurora_operator.plan.conditions.content import SCALED_TO_ZERO, ConditionContent

STARTING = "Starting"
"""Reason until a pod serves clients for the first time since the creation or a scale-up from zero."""
START_FAILED = "StartFailed"
"""Reason of a start while a container cannot start, or has not recovered from a crash."""
START_TIMEOUT = "StartTimeout"
"""Reason of a start that takes longer than the engine's startup probe allows."""
START_FAULTS = (START_FAILED, START_TIMEOUT)


def available(observed: Observed, waits_for: str, now: datetime) -> ConditionContent:
    """The condition's content.

    Args:
        waits_for: the message of ServingReady, which says what the pods wait for.
    """
    wanted = observed.spec.serving.replicas
    serving = sum(view.ready and not view.terminating and view.measurement is None for view in observed.pods)
    message = f"{serving} of {wanted} pods serve clients"
    if serving:
        return ConditionContent(True, "PodsServe", message)
    if wanted == 0:
        return ConditionContent(False, SCALED_TO_ZERO, "no pods are wanted")
    if not is_starting(observed.status):
        return ConditionContent(False, "NoPodServes", message)
    pods = _newest_pods(observed)
    if why := _why_start_fails(observed, pods, now):
        return ConditionContent(False, START_FAILED, f"{message}. {why}")
    limit = start_deadline(observed.deployed.template if observed.deployed else {})
    since = _starting_since(observed, pods)
    if since is not None and now - since > limit:
        late = f"No pod became ready within {limit // timedelta(minutes=1)} minutes"
        return ConditionContent(False, START_TIMEOUT, f"{late}: {waits_for}")
    return ConditionContent(False, STARTING, message)


def is_starting(status: SpeculatorStatus) -> bool:
    """Whether no pod has served clients yet since the creation or a scale-up from zero, as far as ``status`` knows."""
    known = next((c for c in status.conditions if c.type is ConditionType.AVAILABLE), None)
    return known is None or known.reason in (SCALED_TO_ZERO, STARTING, *START_FAULTS)


def _newest_pods(observed: Observed) -> Sequence[PodView]:
    """The pods that share the newest pod's template."""
    pods = [view for view in observed.pods if not view.terminating]
    dated = [(view.created, view.template_hash) for view in pods if view.created is not None]
    newest = max(dated, default=(None, ""))[1]
    return [view for view in pods if view.template_hash == newest]


def _why_start_fails(observed: Observed, pods: Sequence[PodView], now: datetime) -> str:
    """Which container fails, why, and how to read more; empty when none is known to fail.

    The trainer's containers count until the trainer has registered the initial draft, because no pod starts without it.
    """
    waits_for_draft = observed.store.ok and observed.store.channel is None
    trainer = observed.trainer.failing_pod if observed.trainer and waits_for_draft else None
    for view in (*pods, *(() if trainer is None else (trainer,))):
        if view.failure is not None and not view.failure.is_over(now):
            return _failure_text(observed.owner.namespace, view.name, view.failure)
    return ""


def _failure_text(namespace: str, pod: str, failure: ContainerFailure) -> str:
    where, ask = f"Container {failure.container} of pod {pod}", f"kubectl -n {namespace}"
    why = ", ".join(filter(None, (failure.waiting, failure.ending)))
    if failure.ended:
        log = f"`{ask} logs {pod} -c {failure.container} --previous`"
        return f"{where} ended before a pod served ({why}). Its log says why: {log}"
    return f"{where} cannot start ({why}). Its events say why: `{ask} describe pod {pod}`"


def _starting_since(observed: Observed, pods: Sequence[PodView]) -> datetime | None:
    """Since when pods exist, or the API server refuses to create them; None when neither is the case."""
    refused = observed.deployment.refused_since if observed.deployment else None
    times = (*(view.created for view in pods), refused)
    return min((at for at in times if at is not None), default=None)
