"""Reduces Kubernetes' JSON to the few facts that planning needs. Pure.

Invariant: no text that a container of an inference pod wrote leaves this module. An engine may end with a client's
text.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from aurora_operator.children.inference_deployment import (
    CHOICE_ANNOTATION,
    RESTART_ANNOTATION,
    TEMPLATE_ANNOTATION,
)
from aurora_operator.children.metadata import (
    AGENT_CONTAINER,
    ATTEMPT_LABEL,
    ENGINE_CONTAINER,
    JOB_LABEL,
    VERSION_LABEL,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import DeployedTemplate, JobView, PodView, WorkloadView
from aurora_store.errors import bounded_text

MAX_SCHEDULER_MESSAGE_CHARACTERS = 300
"""Length of a scheduler's message that the status repeats. The message may name each kind of node."""
MAX_TERMINATION_MESSAGE_CHARACTERS = 1000
"""Length of a trainer's termination message that the status repeats."""
FAILING_RESTARTS = 2
"""A container that was restarted this often fails until its startup probe passes. A probe may end a container once."""
_NORMAL_WAITING_REASONS = frozenset({"PodInitializing", "ContainerCreating"})


def pod_view(pod: Object, explained: str = "") -> PodView:
    """A pod, without its agent's answer.

    Args:
        explained: name of a container whose termination message explains its crash. The messages of all others are left
            out, because an engine may end with a client's text.
    """
    status = pod.get("status", {})
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    failing = _failing_container(pod)
    scheduling = condition(pod, "PodScheduled")
    waiting = _reason_to_wait(failing) if _waits_abnormally(failing) else ""
    if not waiting and scheduling.get("status") == "False":
        waiting = scheduling.get("reason", "")
    unscheduled = scheduling.get("message", "") if scheduling.get("status") == "False" else ""
    return PodView(
        name=pod["metadata"]["name"],
        ip=status.get("podIP", ""),
        ready=condition(pod, "Ready").get("status") == "True",
        terminating="deletionTimestamp" in pod["metadata"] or has_ended(pod),
        scheduled=scheduling.get("status") == "True",
        waiting=waiting,
        failing=failing.get("name", ""),
        crash=_crash_text(pod, failing, explained),
        scheduler_message=unscheduled[:MAX_SCHEDULER_MESSAGE_CHARACTERS],
        lone_restarts=_lone_restarts(status.get("containerStatuses") or ()),
        created=_time(pod["metadata"].get("creationTimestamp")),
        restarts=max((c.get("restartCount", 0) for c in containers), default=0),
    )


def workload_view(workload: Object | None) -> WorkloadView | None:
    """A Deployment."""
    if workload is None:
        return None
    status = workload.get("status", {})
    seen = status.get("observedGeneration", 0) >= workload["metadata"]["generation"]
    # The number of pods does not matter here: a scale-up that waits for room leaves the template current.
    updated = status.get("updatedReplicas", 0) >= status.get("replicas", 0)
    failure = condition(workload, "ReplicaFailure")
    return WorkloadView(
        current=seen and updated,
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        message=failure.get("message", "") if failure.get("status") == "True" else "",
    )


def deployed_template(deployment: Object | None) -> DeployedTemplate | None:
    """The template of the inference Deployment."""
    if deployment is None:
        return None
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    counts = [status.get(count, 0) for count in ("replicas", "updatedReplicas", "readyReplicas")]
    progress, annotations = condition(deployment, "Progressing"), deployment["metadata"].get("annotations") or {}
    rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate") or {}
    return DeployedTemplate(
        template=deployment["spec"].get("template", {}),
        whole=seen and counts == [wanted] * 3,
        failure=progress.get("message", "") if seen and progress.get("status") == "False" else "",
        progressed=_time(progress.get("lastUpdateTime")),
        choice_digest=annotations.get(CHOICE_ANNOTATION, ""),
        template_digest=annotations.get(TEMPLATE_ANNOTATION, ""),
        restarting_since=_time_or_none(annotations.get(RESTART_ANNOTATION, "")),
        in_place=rolling.get("maxSurge") == 0,
    )


def job_view(job: Object, pods: Iterable[Object] = ()) -> JobView:
    """A validation Job. ``pods`` are the validators' pods, of this Job and of others.

    The message of a failed Job is its container's termination message, or else the Job's own condition. A Job with the
    condition FailureTarget has failed, although its pod still runs: on a lost node it would not end.
    """
    name = job["metadata"]["name"]
    labels = job["metadata"].get("labels", {})
    failure = condition(job, "Failed") or condition(job, "FailureTarget")
    failed = failure.get("status") == "True"
    message = f"the Job failed: {failure.get('reason', '')}: {failure.get('message', '')}" if failed else ""
    own_pods = _pods_of(job, pods)
    last_words = next((text for pod in own_pods for text in _termination_messages(pod)), "") if failed else ""
    suspend = job.get("spec", {}).get("suspend") is True
    succeeded = condition(job, "Complete").get("status") == "True"
    newest = pod_view(own_pods[0]) if own_pods else None
    return JobView(
        name=name,
        version=_number(labels.get(VERSION_LABEL, "")),
        attempt=_number(labels.get(ATTEMPT_LABEL, "")),
        succeeded=succeeded,
        failed=failed,
        message=last_words or message,
        waiting=next((reason for pod in own_pods if (reason := _waiting_reason(pod))), ""),
        unplaced_since=newest.created if newest is not None and newest.waits_for_node else None,
        suspended=suspend and not (succeeded or failed),
    )


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


def condition(obj: Object, kind: str) -> dict[str, Any]:
    """The condition of type ``kind``; empty without one."""
    conditions = obj.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), {})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _time_or_none(text: str) -> datetime | None:
    """The time in an annotation, which anybody may write; None for anything but a time with a zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def _lone_restarts(containers: Iterable[Object]) -> int | None:
    """How much more often the engine was restarted than its agent.

    None while either is about to start: a node that comes back starts one after the other.
    """
    settled = (c for c in containers if _state(c, "running") or _reason_to_wait(c) == "CrashLoopBackOff")
    counts: dict[str, int] = {c["name"]: c.get("restartCount", 0) for c in settled}
    if not counts.keys() >= {ENGINE_CONTAINER, AGENT_CONTAINER}:
        return None
    return counts[ENGINE_CONTAINER] - counts[AGENT_CONTAINER]


def _waiting_reason(pod: Object) -> str:
    """Why a pod does not start, with the scheduler's message if it has one; empty when nothing is wrong."""
    view = pod_view(pod)
    if not view.waiting or view.terminating:
        return ""
    return f"{view.waiting}: {view.scheduler_message}" if view.scheduler_message else view.trouble


def _failing_container(pod: Object) -> Object:
    """The first container of a pod that cannot start, or else the first that ends again and again; empty without one.

    An init container waits between its runs, and has done its work when it ends with 0.
    """
    status = pod.get("status", {})
    containers = status.get("containerStatuses") or ()
    held_up = [c for c in (*(status.get("initContainerStatuses") or ()), *containers) if _waits_abnormally(c)]
    restarting = [c for c in containers if c.get("restartCount", 0) >= FAILING_RESTARTS and not c.get("started")]
    return next(iter([*held_up, *restarting]), {})


def _reason_to_wait(container: Object) -> str:
    """Kubernetes' reason why a container waits; empty for one that does not."""
    reason: str = _state(container, "waiting").get("reason", "")
    return reason


def _waits_abnormally(container: Object) -> bool:
    return _reason_to_wait(container) not in {"", *_NORMAL_WAITING_REASONS}


def _crash_text(pod: Object, container: Object, explained: str) -> str:
    """How the container ended; empty for one that never ran. Only ``explained`` adds its own text."""
    ended = _state(container, "terminated") or container.get("lastState", {}).get("terminated")
    if not ended:
        return ""
    message = ended.get("message", "").strip().partition("\n")[0] if container["name"] == explained else ""
    why = f": {bounded_text(message, MAX_TERMINATION_MESSAGE_CHARACTERS)}" if message else ""
    advice = f" ({_memory_limit(pod, container['name'])})" if ended.get("reason") == "OOMKilled" else ""
    return f"{container['name']} ended with {_ending(ended)}{advice}{why}"


def _memory_limit(pod: Object, name: str) -> str:
    """The memory limit of a container that ran out of memory, and the advice that follows."""
    spec = pod.get("spec", {})
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    limits = next((c.get("resources", {}).get("limits") or {} for c in containers if c["name"] == name), {})
    return f"its limit is {limits['memory']}: raise it" if "memory" in limits else "its node has no more memory"


def _state(container: Object, name: str) -> Object:
    """The container's ``running``, ``waiting`` or ``terminated``; empty when it is in another state."""
    state: Object = container.get("state", {}).get(name) or {}
    return state


def _ending(ended: Object) -> str:
    """``exit code 137, OOMKilled``."""
    reason = ended.get("reason", "")
    cause = "" if reason in ("", "Completed", "Error") else f", {reason}"
    return f"exit code {ended.get('exitCode', 'unknown')}{cause}"


def _termination_messages(pod: Object) -> Iterable[str]:
    """The containers' termination messages, or the reason why a container ended without one."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("message"):
            yield ended["message"]
        elif ended.get("reason") not in (None, "Completed", "Error"):
            yield f"its container ended: {ended['reason']}"
