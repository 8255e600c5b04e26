"""How much of the rollout hypothesis has seen: examples, steps, plans and distinct abstract states of both machines.

``python -m tests.bench.states --examples 3000`` runs the machines of the unit tests, only longer, so it is also the
deep check of the five promises: it fails as they do. A state is abstract: versions are named by what they are now
(active, rolled, other), pods are a set, and times and counters are left out but for what they decide. So two states
differ only where an operator of a service would say so:

- the roll's phase, how far its judgement is, and what the rolled version is now (earned, refused, newer one there);
- which kinds of pods there are: the version held, and serving, down, silent, lying, swapping to what, or failed;
- what people and the world do: paused, pin, wishes, traffic; for the whole plan also the candidate's phase, whether its
  Job runs, whether the store is in reach, and whether the second operator is in the midst of something.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test
from tests.unit.operator.plan.rollout.test_rollout_machine import RolloutMachine
from tests.unit.operator.plan.test_plan_machine import PlanMachine

from aurora_api.v1alpha1.status import AnalysisStatus, RolloutStatus
from aurora_protocol.agent_api import SwapPhase


@dataclass
class Seen:
    """What one machine went through."""

    examples: int = 0
    steps: int = 0
    plans: int = 0
    states: Counter[Hashable] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    late: int = 0
    """States that were new in the last tenth of the examples: few, when little is left to find."""

    def note(self, state: Hashable, *, last_tenth: bool) -> None:
        self.late += last_tenth and state not in self.states
        self.states[state] += 1


def relative(version: int | None, active: int, rolled: int | None) -> str:
    if version is None:
        return "none"
    return "active" if version == active else "rolled" if version == rolled else "other"


def judgement(state: AnalysisStatus | None) -> Hashable:
    if state is None:
        return None
    stage = "baseline" if state.baseline is None else "settling" if state.settling else "judging"
    return stage, state.missing_since is not None, state.successes > 0, state.failures > 0


def roll(status: RolloutStatus) -> Hashable:
    return status.phase, judgement(status.analysis), status.restarts > 0, status.progressed is None


def pod_kind(pod: Any, active: int, rolled: int | None, *, up: bool, silent: bool, asked: int | None) -> Hashable:
    busy = pod.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)
    going = relative(asked, active, rolled) if busy else "failed" if pod.phase is SwapPhase.FAILED else ""
    held = relative(pod.version, active, rolled)
    return held, going, up, silent, pod.slow, bool(pod.salt), getattr(pod, "lie", "")


def rollout_state(machine: RolloutMachine) -> Hashable:
    status, active = machine.status, machine.active
    rolled = status.version
    pods = frozenset(
        pod_kind(p, active, rolled, up=p.ready, silent=not p.reachable, asked=p.asked) for p in machine.pods
    )
    offers = [v for v, against in machine.evidence.items() if against == active and v > active]
    return (
        roll(status),
        relative(rolled, active, None),
        rolled in machine.rejected,
        rolled in offers,
        bool(offers),
        pods,
        machine.policy.paused,
        None if machine.pin is None else relative(machine.pin, active, rolled),
        machine.promote == rolled,
        machine.abort == rolled,
        machine.traffic,
    )


def plan_state(machine: PlanMachine) -> Hashable:
    channel = machine.store.channel
    if channel is None:
        return None
    status, active = machine.status, channel.active
    rolled, candidate = status.rollout.version, status.candidate
    pods = frozenset(
        pod_kind(p, active, rolled, up=p.up, silent=p.silent, asked=p.asked.version if p.asked else None)
        for p in machine.cluster.pods
    )
    pin = machine.pinned().get("pin")
    return (
        roll(status.rollout),
        relative(rolled, active, None),
        rolled in channel.rejected,
        None if candidate is None else (candidate.phase, min(candidate.attempt, 3), candidate.version == rolled),
        frozenset(job.ended for job in machine.cluster.jobs.values()),
        machine.store.newest > max(active, rolled or 0),
        bool(machine.late_evidence),
        pods,
        machine.store.down,
        machine.cluster.spec["rollout"].get("paused", False),
        None if pin is None else relative(pin, active, rolled),
        frozenset(key for key, version in machine.cluster.annotations.items() if version == rolled),
        machine.traffic,
        tuple((operator.looking, operator.acting) for operator in machine.operators),
    )


def counted(examples: int, seen: Seen) -> tuple[type[RuleBasedStateMachine], type[RuleBasedStateMachine]]:
    """Both machines, which note in ``seen`` where they are after every step and before every plan."""

    def last_tenth() -> bool:
        return seen.examples > 0.9 * examples

    class CountedRollout(RolloutMachine):
        def __init__(self) -> None:
            super().__init__()
            seen.examples += 1

        def check_step(self, world: Any, made: Any) -> None:
            seen.plans += 1
            seen.turns[f"{self.status.phase} -> {made.rollout.phase}"] += 1
            seen.note(rollout_state(self), last_tenth=last_tenth())
            super().check_step(world, made)

        @invariant()
        def counts(self) -> None:
            seen.steps += 1
            seen.note(rollout_state(self), last_tenth=last_tenth())

    class CountedPlan(PlanMachine):
        def __init__(self) -> None:
            super().__init__()
            seen.examples += 1

        def check_plan(self, observed: Any, made: Any) -> None:
            seen.plans += 1
            if made.status is not None:
                seen.turns[f"{observed.status.rollout.phase} -> {made.status.rollout.phase}"] += 1
            seen.note(plan_state(self), last_tenth=last_tenth())
            super().check_plan(observed, made)

        @invariant()
        def counts(self) -> None:
            seen.steps += 1
            seen.note(plan_state(self), last_tenth=last_tenth())

    return CountedRollout, CountedPlan


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.states", description=__doc__)
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=40, help="rules per example")
    options = parser.parse_args()
    deep = settings(
        max_examples=options.examples,
        stateful_step_count=options.steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for number, name in enumerate(("rollout", "plan")):
        seen, started = Seen(), time.monotonic()
        run_state_machine_as_test(counted(options.examples, seen)[number], settings=deep)
        print(
            f"{name}: {seen.examples} examples, {seen.steps} steps, {seen.plans} plans, "
            f"{len(seen.states)} distinct states ({seen.late} of them in the last tenth), "
            f"{len(seen.turns)} turns of phase, {time.monotonic() - started:.0f} s"
        )
        for turn, count in sorted(seen.turns.items()):
            print(f"    {turn}: {count}")


if __name__ == "__main__":
    main()
