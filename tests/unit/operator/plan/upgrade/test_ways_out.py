"""An administrator lets the fleet's upgrade go on although one speculator's restart failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.applied_template import RESTART_ANNOTATION
from aurora_operator.plan import plan
from aurora_operator.plan.upgrade.decision import UpgradeStage
from aurora_operator.plan.upgrade.report import with_upgrade_condition
from tests.unit.operator.upgrades import Operator, Speculator, config, running, started
from tests.unit.operator.worlds import NOW


def one_failed_of_two() -> tuple[Speculator, Speculator, Operator]:
    """A speculator whose restart failed, another one that waits for its turn, and the operator."""
    failed, waiting = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    operator.look(failed)
    failed.miss_deadline()
    operator.look(*fleet, *fleet)
    assert (failed.restarts, waiting.restarts) == (1, 0)
    return failed, waiting, operator


def scale_to_zero(failed: Speculator, operator: Operator) -> None:
    failed.change(replicas=0)
    operator.look(failed)
    failed.become_whole()
    operator.look(failed)


def delete(failed: Speculator, operator: Operator) -> None:
    """The finalizer keeps the speculator, because its store is away."""
    operator.find_unusable(failed)


def update_with_spec(failed: Speculator, operator: Operator) -> None:
    failed.change_update("WithSpec")
    operator.look(failed)


@pytest.mark.parametrize("way_out", [scale_to_zero, delete, update_with_spec])
def test_the_order_goes_on_after_each_documented_way_out(way_out: Callable[[Speculator, Operator], None]) -> None:
    failed, waiting, operator = one_failed_of_two()
    way_out(failed, operator)
    operator.look(waiting)
    assert (waiting.restarts, waiting.agent_image) == (1, "agent:2")
    waiting.become_whole()
    again = started(config(2), failed, waiting)
    again.look(waiting)
    assert again.decide(waiting).stage is UpgradeStage.CURRENT


def test_one_that_was_scaled_to_zero_starts_again_without_a_turn() -> None:
    failed, waiting, operator = one_failed_of_two()
    scale_to_zero(failed, operator)
    operator.look(waiting)
    failed.change(replicas=2)
    operator.look(failed)
    assert operator.decide(failed).stage is UpgradeStage.CURRENT
    failed.miss_deadline()
    waiting.become_whole()
    operator.look(failed, waiting)
    assert operator.decide(waiting).failure == ""
    assert operator.decide(failed).failure == "", "its pods fail by themselves, and hold up nobody"


def test_one_that_gave_up_keeps_the_template_that_failed_until_its_user_changes_something() -> None:
    failed, waiting, operator = one_failed_of_two()
    update_with_spec(failed, operator)
    assert operator.decide(failed).stage is UpgradeStage.CURRENT
    assert failed.live is not None
    assert RESTART_ANNOTATION not in failed.live["metadata"]["annotations"]
    assert (failed.restarts, failed.agent_image) == (1, "agent:2")

    later = started(config(3), failed, waiting)
    assert later.decide(failed).stage is UpgradeStage.WITH_SPEC
    failed.change(extraArgs=["--tp", "2"])
    later.look(failed)
    assert failed.agent_image == "agent:3", "a correction of the spec is applied at once"


def test_one_that_gave_up_takes_another_turn_when_it_is_staged_again() -> None:
    failed, waiting, operator = one_failed_of_two()
    update_with_spec(failed, operator)
    failed.change_update("Staged")
    later = started(config(3), failed, waiting)
    later.look(failed, waiting)
    assert (failed.agent_image, waiting.agent_image) == ("agent:2", "agent:3"), "those that are whole come first"
    waiting.become_whole()
    later.look(waiting, failed)
    assert failed.agent_image == "agent:3"
    assert later.decide(failed).stage is UpgradeStage.RESTARTING


def test_a_restart_that_has_not_failed_keeps_its_turn_although_its_user_chooses_with_spec() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    operator.look(first)
    first.change_update("WithSpec")
    operator.look(first, second)
    assert operator.decide(first).stage is UpgradeStage.RESTARTING
    assert second.restarts == 0


def test_the_condition_tells_that_a_turn_was_given_back_until_all_pods_are_ready() -> None:
    failed, _, operator = one_failed_of_two()
    seen = failed.observe()

    def look() -> tuple[str, str]:
        """Observe, plan and apply. Returns the reason and the message of the condition."""
        nonlocal seen
        seen = replace(failed.observe(), status=seen.status)
        made = plan(seen, operator.config, NOW)
        assert made.upgrade is not None
        failed.apply(made.upgrade)
        if made.status is not None:
            seen = replace(seen, status=made.status)
        condition = next(c for c in seen.status.conditions if c.type is ConditionType.UPGRADE_PENDING)
        return condition.reason, condition.message

    assert look()[0] == "UpgradeFailed"
    failed.change_update("WithSpec")
    told = look()
    assert told[0] == "UpToDate"
    assert "gave its turn back" in told[1]
    assert look() == told
    failed.become_whole()
    assert look() == ("UpToDate", "")


def test_another_version_of_the_operator_remembers_a_turn_that_was_given_back() -> None:
    failed, _, operator = one_failed_of_two()
    update_with_spec(failed, operator)
    condition = Condition(
        type=ConditionType.UPGRADE_PENDING,
        status=ConditionStatus.FALSE,
        reason="UpToDate",
        message="the turn was given back, in the words of another version",
        last_transition_time=NOW,
    )
    seen = replace(failed.observe(), status=SpeculatorStatus(conditions=[condition]))
    shown = with_upgrade_condition(SpeculatorStatus(), operator.decide(failed), seen, NOW).conditions
    assert [(c.reason, c.message != "") for c in shown] == [("UpToDate", True)]
    failed.become_whole()
    whole = with_upgrade_condition(SpeculatorStatus(), operator.decide(failed), seen, NOW).conditions
    assert [(c.reason, c.message) for c in whole] == [("UpToDate", "")]


def test_a_restart_with_a_refused_write_keeps_its_turn_although_its_user_chooses_with_spec() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    operator.look(first)
    first.change_update("WithSpec")
    refused = ("Deployment a: failed calling webhook",)
    made = operator.decide(first, apply_errors=refused)
    assert (made.stage, made.failure) == (UpgradeStage.RESTARTING, refused[0])
    first.apply(made)
    operator.look(second)
    assert second.restarts == 0
    operator.look(first)
    assert operator.decide(first).failure == "", "the write went through"
    first.become_whole()
    operator.look(first, second)
    assert (first.restarts, second.restarts) == (1, 1)


def test_one_whose_deployment_is_refused_keeps_its_pods_and_holds_up_nobody_with_its_spec_only() -> None:
    first, second = fleet = running("a", "b")
    operator = started(config(2), *fleet)
    refused = ("Deployment a: denied by an admission webhook",)
    operator.decide(first, apply_errors=refused)
    first.change_update("WithSpec")
    assert operator.decide(first, apply_errors=refused).stage is UpgradeStage.WITH_SPEC
    operator.look(second)
    assert (first.agent_image, second.agent_image) == ("agent:1", "agent:2")
