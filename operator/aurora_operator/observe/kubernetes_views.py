"""From Kubernetes' JSON to the few facts that planning needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from aurora_operator.children.common import ATTEMPT_LABEL, VERSION_LABEL
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import JobView, PodView, WorkloadView

JOB_LABEL = "batch.kubernetes.io/job-name"
_QUIET = frozenset({"PodInitializing", "ContainerCreating"})
TOGETHER = timedelta(seconds=30)
"""A node that comes back starts a pod's containers within this time; an engine takes longer to load a model and end."""


def _condition(obj: Object, kind: str) -> dict[str, Any]:
    found = (c for c in obj.get("status", {}).get("conditions") or () if c["type"] == kind)
    return next(found, {})


def pod(obj: Object) -> PodView:
    status = obj.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    reasons = [c.get("state", {}).get("waiting", {}).get("reason", "") for c in containers]
    scheduling = _condition(obj, "PodScheduled")
    if scheduling.get("status") == "False":
        reasons.append(scheduling.get("reason", ""))
    return PodView(
        name=obj["metadata"]["name"],
        uid=obj["metadata"]["uid"],
        ip=status.get("podIP", ""),
        ready=_condition(obj, "Ready").get("status") == "True",
        terminating="deletionTimestamp" in obj["metadata"] or status.get("phase") in ("Failed", "Succeeded"),
        scheduled=scheduling.get("status") == "True",
        waiting=next((reason for reason in reasons if reason and reason not in _QUIET), ""),
        started_together=_started_together(status.get("containerStatuses") or ()),
    )


def _started_together(containers: Iterable[Object]) -> bool:
    started = [c.get("state", {}).get("running", {}).get("startedAt") for c in containers]
    times = [datetime.fromisoformat(at) for at in started if at]
    return bool(times) and len(times) == len(started) and max(times) - min(times) < TOGETHER


def workload(obj: Object | None) -> WorkloadView | None:
    """A Deployment or a StatefulSet."""
    if obj is None:
        return None
    status, wanted = obj.get("status", {}), obj["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= obj["metadata"]["generation"]
    updated = status.get("updatedReplicas", 0) >= wanted and status.get("replicas", 0) == wanted
    refused = _condition(obj, "ReplicaFailure")
    return WorkloadView(
        current=seen and updated,
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        message=refused.get("message", "") if refused.get("status") == "True" else "",
    )


def disruptions_allowed(obj: Object | None) -> int | None:
    """What a PodDisruptionBudget still allows; None until its controller has seen its last change."""
    status = (obj or {}).get("status", {})
    if obj is None or status.get("observedGeneration", 0) < obj["metadata"]["generation"]:
        return None
    return int(status.get("disruptionsAllowed", 0))


def job(obj: Object, pods: Iterable[Object] = ()) -> JobView:
    """A validation Job; when it failed, why: the last words of its container in ``pods``, else the Job's condition; and
    why a pod of it does not start."""
    name = obj["metadata"]["name"]
    labels = obj["metadata"].get("labels", {})
    failure = _condition(obj, "Failed")
    failed = failure.get("status") == "True"
    message = f"the Job failed: {failure.get('reason', '')}: {failure.get('message', '')}" if failed else ""
    mine = [obj for obj in pods if obj["metadata"].get("labels", {}).get(JOB_LABEL) == name]
    if failed:
        message = next((words for pod in mine for words in _last_words(pod)), message)
    return JobView(
        name=name,
        version=int(labels.get(VERSION_LABEL, "-1")),
        attempt=int(labels.get(ATTEMPT_LABEL, "-1")),
        succeeded=_condition(obj, "Complete").get("status") == "True",
        failed=failed,
        message=message,
        waiting=next((why for obj in mine if (why := _does_not_start(obj))), ""),
    )


def _does_not_start(obj: Object) -> str:
    view, scheduling = pod(obj), _condition(obj, "PodScheduled")
    if not view.waiting or view.terminating:
        return ""
    words = scheduling.get("message", "") if scheduling.get("status") == "False" else ""
    return f"{view.waiting}: {words}" if words else view.waiting


def _last_words(pod: Object) -> Iterable[str]:
    """What its containers left in their termination log, or how they ended when they could not speak."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("message"):
            yield ended["message"]
        elif ended.get("reason") not in (None, "Completed", "Error"):
            yield f"its container ended: {ended['reason']}"
