"""The children that follow from an observation, beyond those that follow from the spec alone."""

from __future__ import annotations

from dataclasses import replace

from aurora_operator.observe.observed import WorkloadView
from aurora_operator.plan.operator_upgrade import decide_upgrade
from aurora_operator.plan.wanted_children import children
from tests.unit.operator.worlds import CONFIG, NOW, observed


def test_a_trainer_that_hangs_on_a_lost_node_does_not_hold_up_a_change_of_the_template() -> None:
    def strategy(trainer: WorkloadView | None) -> str:
        world = observed(trainer=trainer)
        made = children(world, CONFIG, decide_upgrade(world, CONFIG, NOW))
        found = next(child for child in made if child["metadata"]["name"] == "chat-trainer")
        return str(found["spec"]["strategy"]["type"])

    view = WorkloadView(current=True, replicas=1, ready=1)
    assert strategy(replace(view, has_hung_pod=True)) == "RollingUpdate"
    assert strategy(view) == "Recreate"
    assert strategy(None) == "Recreate", "it is created so, because a create call's fields are removed late"
