"""The condition Available: does a pod serve clients and, while none does, does the start go well? Pure.

Invariant: once a pod exists, or the API server refuses to create pods, ``Starting`` becomes ``PodsServe``,
``StartFailed`` or ``StartTimeout``, whatever happens to the pods. The time limit follows from the engine's startup
probe (``children.pod_timing``), and counts from the beginning of the start (``plan.conditions.start``).

Only pods of the newest template can fail a start, so a corrected template gets a new chance at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from aurora_api.v1alpha1.status import StartStatus
from aurora_operator.observe.observed import ContainerFailure, Observed, PodView
from aurora_operator.plan.conditions.content import SCALED_TO_ZERO, ConditionContent
from aurora_operator.plan.conditions.start import (
    START_FAILED,
    START_TIMEOUT,
    STARTING,
    is_starting,
    newest_pods,
    serving_pods,
)


def available(observed: Observed, start: StartStatus | None, waits_for: str, now: datetime) -> ConditionContent:
    """The condition's content.

    Args:
        start: the start in progress.
        waits_for: the message of ServingReady, which says what the pods wait for.
    """
    wanted, serving = observed.spec.serving.replicas, serving_pods(observed)
    message = f"{serving} of {wanted} pods serve clients"
    if serving:
        return ConditionContent(True, "PodsServe", message)
    if wanted == 0:
        return ConditionContent(False, SCALED_TO_ZERO, "no pods are wanted")
    if not is_starting(observed.status):
        return ConditionContent(False, "NoPodServes", message)
    if why := _why_start_fails(observed, newest_pods(observed), now):
        return ConditionContent(False, START_FAILED, f"{message}. {why}")
    last_end = f". The last pod that ended: {start.last_end}" if start is not None and start.last_end else ""
    if start is not None and now > start.deadline:
        late = f"No pod became ready within {(start.deadline - start.since) // timedelta(minutes=1)} minutes"
        return ConditionContent(False, START_TIMEOUT, f"{late}: {waits_for}{last_end}")
    return ConditionContent(False, STARTING, f"{message}{last_end}")


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
        return f"{where} ended ({why}), and no pod has served clients yet. Its log says why: {log}"
    return f"{where} cannot start ({why}). Its events say why: `{ask} describe pod {pod}`"
