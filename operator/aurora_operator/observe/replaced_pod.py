"""Tells which inference pod ended last, and why, once another pod has taken its place. Pure.

Kubernetes keeps an evicted or refused pod with its reason. A preempted or drained pod, and one whose node is lost, has
the condition ``DisruptionTarget`` while it is terminating. The kubelet and the control plane write these texts, no
container does.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from aurora_operator.children.metadata import TEMPLATE_HASH_LABEL
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.kubernetes_views import (
    MAX_SCHEDULER_MESSAGE_CHARACTERS,
    condition,
    has_ended,
)
from aurora_operator.observe.observed import ReplacedPod
from aurora_store.errors import bounded_text


def replaced_pod(pods: Iterable[Object]) -> ReplacedPod | None:
    """The newest pod that is gone or going, and is older than the newest pod that stays; None without one.

    A pod of another template was not replaced, but updated. A scale-down mostly takes the newest pods away, so a pod
    that is not older counts as no replaced one.
    """
    newest_first = sorted(pods, key=_created, reverse=True)
    staying = next((pod for pod in newest_first if not _is_going(pod)), None)
    if staying is None:
        return None
    replaced = (
        _replaced(pod)
        for pod in newest_first
        if _is_going(pod) and _template(pod) == _template(staying) and "" < _created(pod)[0] < _created(staying)[0]
    )
    return next(replaced, None)


def _is_going(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"] or has_ended(pod)


def _created(pod: Object) -> tuple[str, str]:
    return pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]


def _template(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(TEMPLATE_HASH_LABEL, ""))


def _replaced(pod: Object) -> ReplacedPod:
    metadata = pod["metadata"]
    return ReplacedPod(metadata["name"], datetime.fromisoformat(metadata["creationTimestamp"]), _cause(pod))


def _cause(pod: Object) -> str:
    """``Evicted: The node was low on resource: memory``."""
    taken = condition(pod, "DisruptionTarget")
    for source in (pod.get("status", {}), taken if taken.get("status") == "True" else {}):
        if reason := source.get("reason", ""):
            text = ": ".join(filter(None, (reason, source.get("message", "").strip().rstrip("."))))
            return bounded_text(text, MAX_SCHEDULER_MESSAGE_CHARACTERS)
    return "deleted" if "deletionTimestamp" in pod["metadata"] else f"phase {pod.get('status', {}).get('phase', '')}"
