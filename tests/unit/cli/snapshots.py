"""Snapshots of a healthy speculator with one thing wrong, for the tests of the doctor."""

from __future__ import annotations

from typing import Any

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    SpeculatorStatus,
)
from aurora_cli.doctor.diagnosis import diagnose
from aurora_cli.doctor.facts import Snapshot, events_of, pods_of
from tests.unit.cli.fake_cluster import speculator
from tests.unit.operator import worlds
from tests.unit.operator.worlds import NOW

HEALTHY = worlds.status(worlds.observed())


def snapshot(status: SpeculatorStatus | None = HEALTHY, *, pods: Any = (), events: Any = (), **more: Any) -> Snapshot:
    """A speculator of the tests, ``more`` as for :func:`speculator`, with objects as the API server lists them."""
    return Snapshot(
        speculator(status, **more), NOW, tuple(pods_of(pods)), (), tuple(events_of(events)) if events else ()
    )


def found(one: Snapshot) -> list[str]:
    """The titles of what is found."""
    return [finding.title for finding in diagnose(one)]


def with_condition(type_: str, status: ConditionStatus, reason: str, message: str = "") -> SpeculatorStatus:
    """A healthy status but for one condition."""
    made = Condition(type=ConditionType(type_), status=status, reason=reason, message=message, last_transition_time=NOW)
    kept = [one for one in HEALTHY.conditions if one.type != type_]
    return HEALTHY.model_copy(update={"conditions": [*kept, made]})


def pod(name: str = "chat-a", component: str = "inference", **status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": component}
    return {"metadata": {"name": name, "labels": labels}, "status": status}


def waiting(container: str, reason: str, **last: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": f"why {reason}"}}
    return {"name": container, "state": state, "lastState": last, "restartCount": 3}
