"""Which pod ended last while another one took its place, and Kubernetes' reason for that."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.replaced_pod import replaced_pod
from tests.unit.operator.worlds import NOW

LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. "
TAKEN = {"type": "DisruptionTarget", "status": "True"}
DELETED = {"deletionTimestamp": "2026-01-01T00:09:00Z"}


def pod(name: str, minute: int, template: str = "new", metadata: dict[str, Any] | None = None, **status: Any) -> Object:
    made = {"name": name, "uid": name, "creationTimestamp": f"2026-01-01T00:{minute:02}:00Z"}
    labels = {"labels": {"pod-template-hash": template}}
    return {"kind": "Pod", "metadata": made | labels | (metadata or {}), "status": status}


@pytest.mark.parametrize(
    ("gone", "cause"),
    [
        pytest.param(
            pod("a", 0, phase="Failed", reason="Evicted", message=LOW, conditions=[TAKEN]),
            "Evicted: The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi",
            id="the kubelet evicted it",
        ),
        pytest.param(
            pod("a", 0, phase="Failed", reason="UnexpectedAdmissionError", message="no GPU is healthy"),
            "UnexpectedAdmissionError: no GPU is healthy",
            id="the kubelet refused it",
        ),
        pytest.param(
            pod("a", 0, metadata=DELETED, conditions=[TAKEN | {"reason": "PreemptionByScheduler", "message": "room"}]),
            "PreemptionByScheduler: room",
            id="preempted",
        ),
        pytest.param(
            pod("a", 0, metadata=DELETED, conditions=[TAKEN | {"reason": "DeletionByTaintManager"}]),
            "DeletionByTaintManager",
            id="its node is lost",
        ),
        pytest.param(pod("a", 0, metadata=DELETED), "deleted", id="deleted"),
        pytest.param(pod("a", 0, phase="Failed"), "phase Failed", id="no reason is known"),
    ],
)
def test_a_pod_that_was_replaced_is_named_with_kubernetes_reason(gone: Object, cause: str) -> None:
    found = replaced_pod([pod("b", 1), gone])
    assert found is not None
    assert (found.name, found.created, found.cause) == ("a", NOW, cause)


def test_the_newest_replaced_pod_of_the_newest_template_counts() -> None:
    first, second = (pod(name, minute, phase="Failed", reason="Evicted") for name, minute in (("a", 0), ("b", 1)))
    for pods in ([first, second, pod("c", 2)], [pod("c", 2), second, first]):
        found = replaced_pod(pods)
        assert found is not None
        assert found.name == "b"
    assert replaced_pod([first, pod("c", 2, "corrected")]) is None, "the pod was updated"
    assert replaced_pod([first, second]) is None, "no pod has taken their place yet"
    assert replaced_pod([pod("a", 1), pod("b", 1, metadata=DELETED)]) is None, "the replicas were scaled down"
    assert replaced_pod([pod("c", 2)]) is None
    assert replaced_pod([]) is None


def test_a_long_reason_is_cut() -> None:
    found = replaced_pod([pod("a", 0, phase="Failed", reason="Evicted", message="x" * 1000), pod("b", 1)])
    assert found is not None
    assert len(found.cause) <= 300
