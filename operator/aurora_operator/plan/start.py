"""The start of the inference pods: is one in progress, since when, and does it go wrong? Pure.

A start lasts from the creation of the speculator, or a scale-up from zero, until a pod serves clients. ``status.start``
is set for as long. Its clock begins with the first observation, and anew with each change of the spec. Pods that are
evicted or lost do not restart it, so a start whose pods are replaced again and again ends too.

Only the newest pod can fail a start, so a corrected template gets a new chance at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from aurora_api.v1alpha1.status import SpeculatorStatus, StartStatus
from aurora_operator.children.inference_deployment import START_LIMIT
from aurora_operator.observe.observed import ContainerFailure, Observed

START_FAILED = "StartFailed"
"""Reason while a container cannot start, or ends again and again."""
START_TIMEOUT = "StartTimeout"
"""Reason of a start that takes longer than ``START_LIMIT``."""


def is_starting(status: SpeculatorStatus) -> bool:
    """Whether no pod has served clients yet since the creation or a scale-up from zero, as far as ``status`` knows."""
    return status.start is not None or status.observed_generation == 0


def start_of(observed: Observed, now: datetime) -> StartStatus | None:
    """The start after this observation; None once a pod has served clients."""
    if any(pod.serves for pod in observed.pods):
        return None
    if observed.spec.serving.replicas == 0:
        return StartStatus()
    if not is_starting(observed.status):
        return None
    former = observed.status.start
    if former is None or former.since is None or observed.owner.generation != observed.status.observed_generation:
        return StartStatus(since=now)
    return former


def start_fault(observed: Observed, start: StartStatus | None, waits_for: str, now: datetime) -> tuple[str, str] | None:
    """Reason and message of what a person must mend before a pod can serve; None while the start may still succeed.

    Args:
        start: the start in progress.
        waits_for: the message of ServingReady, which says what the pods wait for.
    """
    if start is None or observed.spec.serving.replicas == 0:
        return None
    if why := _failing_container(observed):
        return START_FAILED, why
    if start.since is not None and now - start.since > START_LIMIT:
        minutes = START_LIMIT // timedelta(minutes=1)
        return START_TIMEOUT, f"No pod became ready within {minutes} minutes: {waits_for}"
    return None


def _failing_container(observed: Observed) -> str:
    """Which container of the newest pod fails, why, and how to read more; empty when none is known to fail."""
    dated = [(view.created, view.name, view) for view in observed.pods if view.created and not view.terminating]
    newest = max(dated, key=lambda entry: entry[:2])[2] if dated else None
    if newest is None or newest.failure is None:
        return ""
    return _failure_text(observed.owner.namespace, newest.name, newest.failure)


def _failure_text(namespace: str, pod: str, failure: ContainerFailure) -> str:
    where, ask = f"Container {failure.container} of pod {pod}", f"kubectl -n {namespace}"
    why = ", ".join(filter(None, (failure.waiting, failure.ending)))
    if failure.ended:
        log = f"`{ask} logs {pod} -c {failure.container} --previous`"
        return f"{where} ended ({why}), and no pod has served clients yet. Its log says why: {log}"
    return f"{where} cannot start ({why}). Its events say why: `{ask} describe pod {pod}`"
