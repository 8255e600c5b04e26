"""From Kubernetes' JSON to the few facts that planning needs. Pure."""

from __future__ import annotations

from typing import Any

from aurora_operator.children.common import ATTEMPT_LABEL, VERSION_LABEL
from aurora_operator.kube import Object
from aurora_operator.observed import JobView, PodView, WorkloadView

_QUIET = frozenset({"PodInitializing", "ContainerCreating"})


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
    )


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


def job(obj: Object) -> JobView:
    labels = obj["metadata"].get("labels", {})
    failure = _condition(obj, "Failed")
    failed = failure.get("status") == "True"
    return JobView(
        name=obj["metadata"]["name"],
        version=int(labels.get(VERSION_LABEL, "-1")),
        attempt=int(labels.get(ATTEMPT_LABEL, "-1")),
        succeeded=_condition(obj, "Complete").get("status") == "True",
        failed=failed,
        message=f"the Job failed: {failure.get('reason', '')}: {failure.get('message', '')}" if failed else "",
    )
