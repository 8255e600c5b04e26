"""The views reduce Kubernetes' JSON to the facts for planning."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from aurora_operator.children.metadata import JOB_LABEL
from aurora_operator.observe import kubernetes_views
from aurora_operator.observe.observed import PodView, WorkloadView
from tests.unit.operator.worlds import NOW

RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:05Z"}}
STARTING: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
LOOPS: dict[str, Any] = {"waiting": {"reason": "CrashLoopBackOff"}}
EXITED: dict[str, Any] = {"terminated": {"exitCode": 137}}


@pytest.mark.parametrize(
    ("engine", "agent", "expected"),
    [
        ((RUNNING, 3), (RUNNING, 1), 2),
        ((LOOPS, 3), (RUNNING, 1), 2),
        ((RUNNING, 1), (LOOPS, 4), -3),
        ((EXITED, 3), (RUNNING, 1), None),
        ((RUNNING, 1), (EXITED, 0), None),
        ((STARTING, 0), (STARTING, 0), None),
    ],
    ids=["the engine was restarted", "it ends again and again", "the agent does", "the engine ends now",
         "a node that comes back", "a new pod"],
)  # fmt: skip
def test_restarts_of_the_engine_alone_are_told_from_those_of_the_whole_pod(
    engine: tuple[dict[str, Any], int], agent: tuple[dict[str, Any], int], expected: int | None
) -> None:
    pair = (("sglang", *engine), ("agent", *agent))
    statuses = [{"name": name, "state": state, "restartCount": count} for name, state, count in pair]
    found = kubernetes_views.pod_view(
        {"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": statuses}}
    )
    assert found.lone_restarts == expected


def test_a_paused_deployment_is_seen_with_its_last_progress() -> None:
    progress = {"type": "Progressing", "status": "Unknown", "lastUpdateTime": "2026-01-01T00:00:00Z"}
    live = {"metadata": {"generation": 2}, "spec": {"paused": True}, "status": {"conditions": [progress]}}
    deployed = kubernetes_views.deployed_template(live)
    assert deployed is not None
    assert (deployed.progressed, deployed.failure) == (NOW, "")


@pytest.mark.parametrize(
    ("ended", "trouble"),
    [
        (
            {"exitCode": 137, "reason": "OOMKilled"},
            "CrashLoopBackOff: sglang ended with exit code 137, OOMKilled (its limit is 8Gi: raise it)",
        ),
        ({"exitCode": 1, "reason": "Error", "message": "a prompt"}, "CrashLoopBackOff: sglang ended with exit code 1"),
        (None, "CrashLoopBackOff"),
    ],
)
def test_a_pod_says_how_its_container_crashed_without_the_containers_text(
    ended: dict[str, Any] | None, trouble: str
) -> None:
    crashed = {"name": "sglang", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    crashed |= {"lastState": {"terminated": ended}} if ended else {}
    limited = {"name": "sglang", "resources": {"limits": {"memory": "8Gi"}}}
    metadata = {"name": "chat-a", "uid": "u"}
    pod = {"metadata": metadata, "spec": {"containers": [limited]}, "status": {"containerStatuses": [crashed]}}
    assert kubernetes_views.pod_view(pod).trouble == trouble


@pytest.mark.parametrize(
    ("container_name", "message", "why"),
    [
        ("trainer", "lineage 1 was made for another target\nTraceback", ": lineage 1 was made for another target"),
        ("trainer", "x" * 5000, f": {'x' * 999}…"),
        ("trainer", "a\x1b[31mb", ": a [31mb"),
        ("trainer", " \n", ""),
        ("a-sidecar", "a prompt", ""),
    ],
)
def test_the_crash_of_the_trainer_is_explained_in_one_bounded_line(container_name: str, message: str, why: str) -> None:
    crashed = {"name": container_name, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    crashed["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    pod = {"metadata": {"name": "chat-trainer-a", "uid": "u"}, "status": {"containerStatuses": [crashed]}}
    found = kubernetes_views.pod_view(pod, "trainer").trouble
    assert found == f"CrashLoopBackOff: {container_name} ended with exit code 1{why}"


def test_a_container_that_runs_again_is_no_trouble() -> None:
    restarted = {"name": "sglang", "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}
    pod = {"metadata": {"name": "chat-a", "uid": "u"}, "status": {"containerStatuses": [restarted]}}
    assert kubernetes_views.pod_view(pod).trouble == ""


def inference_pod(*conditions: dict[str, str], **metadata: str) -> PodView:
    return kubernetes_views.pod_view(
        {"metadata": {"name": "p", "uid": "u", **metadata}, "status": {"conditions": [*conditions]}}
    )


def test_a_pod_waits_for_a_node_until_the_scheduler_found_one() -> None:
    no_room = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes. " * 100}
    found = inference_pod(no_room)
    assert found.waits_for_node
    assert found.scheduler_message.startswith("0/1 nodes. 0/1")
    assert len(found.scheduler_message) == kubernetes_views.MAX_SCHEDULER_MESSAGE_CHARACTERS
    assert inference_pod().waits_for_node, "the scheduler has not seen it yet"
    placed = inference_pod({"type": "PodScheduled", "status": "True"})
    assert (placed.waits_for_node, placed.scheduler_message) == (False, "")
    assert not inference_pod(no_room, deletionTimestamp="2026-01-01T00:00:00Z").waits_for_node


def workload(wanted: int, **status: Any) -> WorkloadView:
    found = kubernetes_views.workload_view(
        {"metadata": {"generation": 2}, "spec": {"replicas": wanted}, "status": {"observedGeneration": 2, **status}}
    )
    assert found is not None
    return found


def test_a_workload_is_current_while_it_scales_and_not_while_it_updates() -> None:
    assert workload(3, replicas=2, updatedReplicas=2).current, "no room for a third pod, which changes no template"
    assert workload(1, replicas=2, updatedReplicas=2).current, "scaled down"
    assert workload(0).current
    assert not workload(2, replicas=3, updatedReplicas=1).current, "an update with an extra pod"
    assert not workload(2, replicas=1).current, "an update that deletes first"
    assert not workload(2, replicas=2, updatedReplicas=2, observedGeneration=1).current, "not seen yet"


def of_job(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "u", "labels": {JOB_LABEL: "j"}}, "status": status}


NO_ROOM = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
PLACED = {"type": "PodScheduled", "status": "True"}


@pytest.mark.parametrize(
    ("condition", "reason", "waiting"),
    [
        (NO_ROOM, "", "Unschedulable: 0/1 nodes are available"),
        (PLACED, "ImagePullBackOff", "ImagePullBackOff"),
        (PLACED, "ContainerCreating", ""),
    ],
)
def test_a_job_says_why_its_pod_does_not_start(condition: dict[str, str], reason: str, waiting: str) -> None:
    container = {"name": "validator", "state": {"waiting": {"reason": reason}}}
    status = {"conditions": [condition], "containerStatuses": [container] if reason else []}
    assert kubernetes_views.job_view({"metadata": {"name": "j"}}, [of_job(status)]).waiting == waiting
    another = kubernetes_views.job_view({"metadata": {"name": "other"}}, [of_job(status)])
    assert another.waiting == "", "the pod is of another Job"


def test_a_job_tells_since_when_its_pod_waits_for_a_node() -> None:
    made = "2026-01-01T00:00:00Z"
    for placed, since in (("False", made), ("True", None)):
        pod = of_job({"conditions": [{"type": "PodScheduled", "status": placed}]})
        pod["metadata"]["creationTimestamp"] = made
        shown = kubernetes_views.job_view({"metadata": {"name": "j"}}, [pod]).unplaced_since
        assert shown == (datetime.fromisoformat(since) if since else None)


def test_a_suspended_job_is_seen_until_it_ends() -> None:
    metadata = {"name": "j"}
    waits = kubernetes_views.job_view({"metadata": metadata, "spec": {"suspend": True}})
    assert (waits.suspended, waits.finished) == (True, False)
    runs = kubernetes_views.job_view({"metadata": {"name": "j"}, "spec": {"suspend": False}})
    assert not runs.suspended
    failed = {"conditions": [{"type": "Failed", "status": "True"}]}
    ended = kubernetes_views.job_view({"metadata": metadata, "spec": {"suspend": True}, "status": failed})
    assert (ended.suspended, ended.failed) == (False, True)


def test_the_last_pod_of_a_job_says_why_the_job_failed() -> None:
    """A Job that was suspended while it ran has had a pod before, which only says that it was interrupted."""
    failed = {"metadata": {"name": "j"}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}

    def pod(created: str, message: str, phase: str = "Failed") -> dict[str, Any]:
        made = of_job(
            {"phase": phase, "containerStatuses": [{"name": "v", "state": {"terminated": {"message": message}}}]}
        )
        made["metadata"]["creationTimestamp"] = created
        return made

    first, last = pod("2026-01-01T00:00:00Z", "interrupted"), pod("2026-01-01T00:05:00Z", "too few prompts")
    assert kubernetes_views.job_view(failed, [first, last]).message == "too few prompts"


def test_a_job_has_failed_although_its_pod_does_not_end() -> None:
    """A pod on a lost node does not end, and Kubernetes calls its Job failed only afterwards."""
    failing = {"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    job = {"metadata": {"name": "j"}, "status": {"conditions": [failing]}}
    seen = kubernetes_views.job_view(job)
    assert (seen.failed, seen.message) == (True, "the Job failed: DeadlineExceeded: too long")


ENDED = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "a prompt"}}
OOM = "c ended with exit code 137, OOMKilled (its node has no more memory)"
NOTHING = ("", "", "")


def failure_of(container: dict[str, Any], statuses: str = "containerStatuses", **status: Any) -> tuple[str, ...]:
    """The failing container, Kubernetes' reason and the crash, of a pod with one other container on its way."""
    other = {"initContainerStatuses": [{"name": "stage", "state": {}}]}
    pod = {"metadata": {"name": "p", "uid": "u"}, "status": other | {statuses: [{"name": "c"} | container]} | status}
    found = kubernetes_views.pod_view(pod)
    assert "a prompt" not in repr(found)
    return found.failing, found.waiting, found.crash


@pytest.mark.parametrize(
    ("container", "failure"),
    [
        ({"state": {"waiting": {"reason": "ErrImagePull", "message": "x"}}}, ("c", "ErrImagePull", "")),
        (
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ENDED, "restartCount": 1},
            ("c", "CrashLoopBackOff", OOM),
        ),
        (
            {"state": RUNNING, "lastState": ENDED, "restartCount": 2, "started": False},
            ("c", "", OOM),  # its startup probe has not passed
        ),
        ({"state": RUNNING, "lastState": ENDED, "restartCount": 1, "started": False}, NOTHING),
        ({"state": RUNNING, "lastState": ENDED, "restartCount": 2, "started": True}, NOTHING),
        ({"state": ENDED, "lastState": ENDED, "restartCount": 2}, ("c", "", OOM)),
        ({"state": {"waiting": {"reason": "PodInitializing"}}}, NOTHING),
        ({"state": RUNNING, "restartCount": 0, "started": True}, NOTHING),
    ],
)
def test_a_container_fails_that_cannot_start_or_that_ends_again_and_again(
    container: dict[str, Any], failure: tuple[str, ...]
) -> None:
    assert failure_of(container) == failure


def test_an_init_container_fails_only_while_it_waits() -> None:
    done = {"state": {"terminated": {"exitCode": 0}}, "lastState": ENDED, "restartCount": 3}
    assert failure_of(done, "initContainerStatuses") == NOTHING
    crashed = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": ENDED}
    assert failure_of(crashed, "initContainerStatuses") == ("c", "CrashLoopBackOff", OOM)


def test_a_deployment_says_why_its_pods_are_refused() -> None:
    condition = {"type": "ReplicaFailure", "message": "quota"}
    assert workload(2, conditions=[condition | {"status": "True"}]).message == "quota"
    assert workload(2, conditions=[condition | {"status": "False"}]).message == ""
