"""The views reduce Kubernetes' JSON to the facts for planning."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_operator.observe import kubernetes_views


def container(name: str, started: str | None) -> dict[str, Any]:
    return {"name": name, "state": {"running": {"startedAt": started}} if started else {"waiting": {"reason": "x"}}}


@pytest.mark.parametrize(
    ("engine", "agent", "together"),
    [
        ("2026-01-01T00:00:12Z", "2026-01-01T00:00:05Z", True),
        ("2026-01-01T00:09:00Z", "2026-01-01T00:00:05Z", False),
        ("2026-01-01T00:00:05Z", "2026-01-01T00:09:00Z", False),
        (None, "2026-01-01T00:00:05Z", False),
        (None, None, False),
    ],
    ids=["a node that came back", "the engine ended", "the agent ended", "the engine does not run", "nothing runs"],
)
def test_containers_that_started_together_are_distinguished_from_an_engine_that_crashed_alone(
    engine: str | None, agent: str | None, together: bool
) -> None:
    statuses = [container("sglang", engine), container("agent", agent)]
    found = kubernetes_views.pod_view(
        {"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": statuses}}
    )
    assert found.started_together is together


def test_a_pod_without_containers_did_not_start_together() -> None:
    assert not kubernetes_views.pod_view({"metadata": {"name": "p", "uid": "u"}, "status": {}}).started_together


def of_job(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "u", "labels": {kubernetes_views.JOB_LABEL: "j"}}, "status": status}


@pytest.mark.parametrize(
    ("status", "waiting"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        ),
        (
            {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}],
            },
            "ImagePullBackOff",
        ),
        (
            {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}],
            },
            "",
        ),
        ({}, ""),
    ],
    ids=["no room", "no image", "on its way", "just made"],
)
def test_a_job_says_why_its_pod_does_not_start(status: dict[str, Any], waiting: str) -> None:
    job = {"metadata": {"name": "j"}, "status": {}}
    assert kubernetes_views.job_view(job, [of_job(status)]).waiting == waiting
    assert kubernetes_views.job_view({"metadata": {"name": "other"}}, [of_job(status)]).waiting == "", (
        "another Job's pod"
    )
