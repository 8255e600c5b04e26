"""Reduces Kubernetes' JSON to the few facts that planning needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from aurora_operator.children.applied_template import read_applied_template
from aurora_operator.children.metadata import ATTEMPT_LABEL, VERSION_LABEL
from aurora_operator.children.queue_label import QUEUE_LABEL, guarded_labels
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import ContainerFailure, DeployedTemplate, JobView, PodView, WorkloadView
from aurora_store.errors import bounded_text

JOB_LABEL = "batch.kubernetes.io/job-name"
TEMPLATE_HASH_LABEL = "pod-template-hash"
BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
"""Reason of a Job that failed because its pod did."""
NEVER_STARTED = "its Job was suspended before its pod could start"
_NORMAL_WAITING_REASONS = frozenset({"PodInitializing", "ContainerCreating"})
SAME_START_TOLERANCE = timedelta(seconds=30)
"""Containers that start within this time started together.

A node that comes back starts a pod's containers within this time. An engine that crashes alone takes longer than this
to load its model before it can crash.
"""
FAILING_RESTARTS = 3
"""After this many restarts, a container counts as failing until it has started, even while it loads."""
_NEVER_RAN = ("StartError", "ContainerCannotRun")
"""Reasons of a container whose program the runtime could not run, so that there is no log."""
MAX_SCHEDULER_MESSAGE_CHARACTERS = 300
"""Length of a scheduler's message that the status repeats. The message may name each kind of node."""
MAX_TERMINATION_MESSAGE_CHARACTERS = 1000
"""Length of a trainer's termination message that the status repeats."""


def pod_view(pod: Object, explained: str = "") -> PodView:
    """A pod, without its agent's answer.

    Args:
        explained: name of a container whose termination message explains its crash. The messages of all others are left
            out, because an engine may end with a client's text.
    """
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    held_up: Object = next((c for c in containers if _waits_abnormally(c)), {})
    waiting, scheduling = _waiting(held_up), _condition(pod, "PodScheduled")
    if not waiting and scheduling.get("status") == "False":
        waiting = scheduling.get("reason", "")
    unscheduled = scheduling.get("message", "") if scheduling.get("status") == "False" else ""
    return PodView(
        name=pod["metadata"]["name"],
        uid=pod["metadata"]["uid"],
        ip=status.get("podIP", ""),
        ready=_condition(pod, "Ready").get("status") == "True",
        terminating="deletionTimestamp" in pod["metadata"] or has_ended(pod),
        scheduled=scheduling.get("status") == "True",
        waiting=waiting,
        crash=_crash(held_up, explained),
        scheduler_message=unscheduled[:MAX_SCHEDULER_MESSAGE_CHARACTERS],
        scheduling_gates=tuple(gate["name"] for gate in pod.get("spec", {}).get("schedulingGates") or ()),
        started_together=_started_together(status.get("containerStatuses") or ()),
        failure=next(filter(None, map(_failure, containers)), None),
        created=_time(pod["metadata"].get("creationTimestamp")),
        template_hash=(pod["metadata"].get("labels") or {}).get(TEMPLATE_HASH_LABEL, ""),
    )


def workload_view(workload: Object | None) -> WorkloadView | None:
    """A Deployment."""
    if workload is None:
        return None
    status = workload.get("status", {})
    seen = status.get("observedGeneration", 0) >= workload["metadata"]["generation"]
    # The number of pods does not matter here: a scale-up that waits for room leaves the template current.
    updated = status.get("updatedReplicas", 0) >= status.get("replicas", 0)
    failure = _condition(workload, "ReplicaFailure")
    refused = failure.get("status") == "True"
    return WorkloadView(
        current=seen and updated,
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        message=failure.get("message", "") if refused else "",
        refused_since=_time(failure.get("lastTransitionTime")) if refused else None,
        kueue_labels=guarded_labels(workload["metadata"].get("labels") or {}),
    )


def deployed_template(deployment: Object | None) -> DeployedTemplate | None:
    """The template of the inference Deployment."""
    if deployment is None:
        return None
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "readyReplicas")]
    progress = _condition(deployment, "Progressing")
    return DeployedTemplate(
        template=deployment["spec"].get("template", {}),
        applied=read_applied_template(deployment),
        whole=seen and counts == [wanted] * 3,
        failure=progress.get("message", "") if seen and progress.get("status") == "False" else "",
    )


def disruptions_allowed(budget: Object | None) -> int | None:
    """Number of healthy pods beyond those that the PodDisruptionBudget demands, negative when some are missing.

    None until the budget's controller has seen the budget's last change.
    """
    if budget is None:
        return None
    status = budget.get("status", {})
    if status.get("observedGeneration", 0) < budget["metadata"]["generation"]:
        return None
    return int(status.get("currentHealthy", 0)) - int(status.get("desiredHealthy", 0))


def job_view(job: Object, pods: Iterable[Object] = ()) -> JobView:
    """A validation Job. ``pods`` are the validators' pods, of this Job and of others.

    The message of a failed Job is its container's termination message, or else the Job's own condition.
    """
    name = job["metadata"]["name"]
    labels = job["metadata"].get("labels", {})
    failure = _condition(job, "Failed")
    failed = failure.get("status") == "True"
    message = f"the Job failed: {failure.get('reason', '')}: {failure.get('message', '')}" if failed else ""
    own_pods = _pods_of(job, pods)
    last_words = next((text for pod in own_pods for text in _termination_messages(pod)), "") if failed else ""
    suspend = job.get("spec", {}).get("suspend") is True
    never_started = suspend and not last_words and failure.get("reason") == BACKOFF_LIMIT_EXCEEDED
    succeeded = _condition(job, "Complete").get("status") == "True"
    return JobView(
        name=name,
        version=_number(labels.get(VERSION_LABEL, "")),
        attempt=_number(labels.get(ATTEMPT_LABEL, "")),
        succeeded=succeeded,
        failed=failed,
        message=NEVER_STARTED if never_started else last_words or message,
        never_started=never_started,
        waiting=next((reason for pod in own_pods if (reason := _waiting_reason(pod))), ""),
        suspended=suspend and not (succeeded or failed),
        queue=labels.get(QUEUE_LABEL, ""),
    )


def ended_pod(job: Object, pods: Iterable[Object]) -> bool:
    """Whether the last pod of ``job`` has ended, so that its termination message is known."""
    own_pods = _pods_of(job, pods)
    return bool(own_pods) and has_ended(own_pods[0])


def _pods_of(job: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods of ``job``, last one first. A Job that was suspended, or whose pod was evicted, has had several."""
    name = job["metadata"]["name"]
    own = [pod for pod in pods if pod["metadata"].get("labels", {}).get(JOB_LABEL) == name]
    return sorted(own, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", reverse=True)


def has_ended(pod: Object) -> bool:
    """Whether none of the pod's containers runs, or will run again. An evicted pod has ended."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def _number(text: str) -> int:
    """The number in a label; -1 when somebody changed the label to something else."""
    return int(text) if text.isdecimal() else -1


def _condition(obj: Object, kind: str) -> dict[str, Any]:
    conditions = obj.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _started_together(containers: Iterable[Object]) -> bool:
    started = [c.get("state", {}).get("running", {}).get("startedAt") for c in containers]
    times = [datetime.fromisoformat(at) for at in started if at]
    return bool(times) and len(times) == len(started) and max(times) - min(times) < SAME_START_TOLERANCE


def _waiting(container: Object) -> str:
    """Kubernetes' reason why a container waits; empty for one that does not."""
    reason: str = container.get("state", {}).get("waiting", {}).get("reason", "")
    return reason


def _waits_abnormally(container: Object) -> bool:
    return _waiting(container) not in {"", *_NORMAL_WAITING_REASONS}


def _crash(container: Object, explained: str) -> str:
    """How a container ended that now waits for its restart, else empty. Only ``explained`` adds its own text."""
    ended = _last_end(container)
    if not ended or not container.get("state", {}).get("waiting"):
        return ""
    message = ended.get("message", "").strip().partition("\n")[0] if container["name"] == explained else ""
    why = f": {bounded_text(message, MAX_TERMINATION_MESSAGE_CHARACTERS)}" if message else ""
    return f"{container['name']} ended with {_ending(ended)}{why}"


def _failure(container: Object) -> ContainerFailure | None:
    """Why a container cannot start, or ends again and again; None when nothing is known to be wrong.

    The exit code of an earlier run does not matter: an engine that its startup probe ends may exit with 0.
    """
    ended, held_up = _last_end(container), _waits_abnormally(container)
    done = container.get("state", {}).get("terminated", {}).get("exitCode") == 0  # an init container, after all
    restarts = bool(ended) and container.get("restartCount", 0) >= FAILING_RESTARTS
    if not held_up and (done or container.get("started") or not restarts):
        return None
    return ContainerFailure(
        container["name"],
        waiting=_waiting(container) if held_up else "",
        ending=_ending(ended) if ended else "",
        ran=ended.get("reason", "") not in _NEVER_RAN,
    )


def _last_end(container: Object) -> Object:
    """How the container ended before it was started again; empty for one that never ended."""
    ended: Object = container.get("lastState", {}).get("terminated") or {}
    return ended


def _ending(ended: Object) -> str:
    """``exit code 137, OOMKilled``."""
    reason = ended.get("reason", "")
    cause = "" if reason in ("", "Completed", "Error") else f", {reason}"
    return f"exit code {ended.get('exitCode', 'unknown')}{cause}"


def _waiting_reason(pod: Object) -> str:
    """Why a pod does not start, with the scheduler's message if it has one; empty when nothing is wrong."""
    view = pod_view(pod)
    if not view.waiting or view.terminating:
        return ""
    return f"{view.waiting}: {view.scheduler_message}" if view.scheduler_message else view.trouble


def _termination_messages(pod: Object) -> Iterable[str]:
    """The containers' termination messages, or the reason why a container ended without one."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("message"):
            yield ended["message"]
        elif ended.get("reason") not in (None, "Completed", "Error"):
            yield f"its container ended: {ended['reason']}"
