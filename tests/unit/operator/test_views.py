"""What is read from Kubernetes' JSON."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_operator import views


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
def test_a_pod_whose_containers_started_together_is_told_from_one_whose_engine_ended(
    engine: str | None, agent: str | None, together: bool
) -> None:
    statuses = [container("sglang", engine), container("agent", agent)]
    found = views.pod({"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": statuses}})
    assert found.started_together is together


def test_a_pod_without_containers_has_started_nothing_together() -> None:
    assert not views.pod({"metadata": {"name": "p", "uid": "u"}, "status": {}}).started_together
