"""Checks that a pod which is away rejects its version only after its whole time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from aurora_operator.plan.rollout.facts import return_limit
from aurora_operator.plan.rollout.machine import Step
from aurora_operator.plan.rollout.world import World
from tests.unit.operator.plan.rollout.simulated_pod import SimulatedPod


class AbsenceCheck:
    """Remembers when each pod was last observed up."""

    def __init__(self) -> None:
        self._seen_up: dict[str, datetime] = {}

    def check(self, world: World, pods: Iterable[SimulatedPod], made: Step) -> None:
        for pod in pods:
            up = pod.ready and not pod.node_lost
            known = world.now if up or world.observation_gap else self._seen_up.get(pod.name, world.now)
            self._seen_up[pod.name] = min(known, world.now)
        name, _, rest = made.rollout.message.removeprefix("pod ").partition(" ")
        if made.advance is not None and rest.startswith("did not come back"):
            assert world.now - self._seen_up[name] > return_limit(world, name), made.rollout.message
