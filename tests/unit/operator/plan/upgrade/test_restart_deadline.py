"""No speculator keeps its turn to restart for ever, whatever its Deployment, its spec or its deletion do."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aurora_operator.children.applied_template import RESTART_SINCE_ANNOTATION
from aurora_operator.children.startup_timing import MIN_START_SECONDS
from aurora_operator.fleet import START_SECONDS
from aurora_operator.plan.upgrade.decision import UpgradeStage
from tests.unit.operator.upgrades import Operator, Speculator, config, running
from tests.unit.operator.worlds import NOW


def restarting_since_now() -> tuple[Speculator, Speculator, Operator, list[float]]:
    """Two speculators, of which the first has just begun its restart, and the operator with its clock."""
    first, second = fleet = running("a", "b")
    now = [0.0]
    operator = Operator(config(2), fleet, lambda: now[0])
    operator.look(*fleet)
    now[0] = START_SECONDS
    operator.look(first)
    assert first.restarts == 1
    return first, second, operator, now


def test_a_restart_without_progress_fails_after_the_time_that_a_start_may_take_whatever_the_deployment_says() -> None:
    first, second, operator, now = restarting_since_now()
    first.be_paused()
    now[0] += MIN_START_SECONDS
    operator.look(*[first, second] * 2)
    assert operator.decide(first).failure == ""
    now[0] += 1
    again = Operator(config(2), [first], lambda: now[0])
    assert again.decide(first).failure == "no further pod became ready for 65 minutes", "a new process knows it too"
    operator.look(first)
    assert operator.decide(second).stage is UpgradeStage.WAITING
    repaired = Operator(config(3), [first], lambda: now[0])
    repaired.look(first)
    first.be_paused()
    assert repaired.decide(first).failure == "", "a later template has the whole time again"


def test_a_restart_pod_by_pod_has_its_whole_time_after_each_pod() -> None:
    first, _, operator, now = restarting_since_now()
    first.be_paused()
    assert first.live is not None
    now[0] += MIN_START_SECONDS
    first.live["status"]["conditions"][0]["lastUpdateTime"] = (NOW + timedelta(seconds=now[0])).isoformat()
    now[0] += MIN_START_SECONDS
    assert operator.decide(first).failure == ""
    now[0] += 1
    assert operator.decide(first).failure != ""


@pytest.mark.parametrize("since", [None, "yesterday", "2026-01-01T00:00:00"])
def test_a_restart_that_an_earlier_operator_began_is_timed_from_now_on(since: str | None) -> None:
    first, _, operator, now = restarting_since_now()
    assert first.live is not None
    annotations = first.live["metadata"]["annotations"]
    annotations.pop(RESTART_SINCE_ANNOTATION)
    annotations |= {} if since is None else {RESTART_SINCE_ANNOTATION: since}
    now[0] += 2 * MIN_START_SECONDS
    made = operator.decide(first)
    assert (made.stage, made.failure) == (UpgradeStage.RESTARTING, "")
    assert made.annotations[RESTART_SINCE_ANNOTATION] == (NOW + timedelta(seconds=now[0])).isoformat()


def test_one_whose_spec_cannot_be_used_or_that_is_being_deleted_gives_its_turn_back() -> None:
    first, second, operator, _ = restarting_since_now()
    operator.look(second)
    assert second.restarts == 0
    operator.find_unusable(first)
    operator.look(second)
    assert second.restarts == 1
