"""How much of the operator's rollout do the randomised tests cover, and does a longer run break a promise?

Runs the two hypothesis state machines of the unit tests for longer: the rollout alone, and the whole plan. A broken
promise fails the bench as it fails the unit tests, so the bench is also the deep check of the five promises.

Prints, per machine, the examples, steps, plans and distinct abstract states, and the changes of phase. A state is
abstract: versions are named by their role (active, rolled, other), pods are a set, and times and counters are left out
unless a decision depends on them. An abstract state consists of:

- the rollout: its phase, the progress of its live analysis, and the rolled version's standing (has evidence, rejected,
  a newer version exists);
- the pods: the version of each, and whether the pod serves, is down, silent, lying, swapping or failed, or waits for a
  node;
- users and cluster: paused, pin, promote and abort requests, and traffic. For the whole plan also the phase of the
  candidate, whether its Job runs, whether the store is reachable, and whether the second operator is in the middle of
  an action.

Takes about 30 seconds per 100 examples. Needs a CPU only, and no server.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test
from tests.bench.bench_command import bench_parser
from tests.unit.operator.plan.rollout.test_rollout_machine import RolloutMachine
from tests.unit.operator.plan.test_plan_machine import PlanMachine

from aurora_operator.plan.rollout.roll import AnalysisState, Roll, read_roll
from aurora_protocol.agent_api import SwapPhase


@dataclass
class StateCounts:
    """The counts of one machine's run."""

    examples: int = 0
    steps: int = 0
    plans: int = 0
    states: Counter[Hashable] = field(default_factory=Counter)
    phase_changes: Counter[str] = field(default_factory=Counter)
    new_in_last_tenth: int = 0
    """States that were first seen in the last tenth of the examples. The number is small when little is left to find.
    """

    def count_state(self, state: Hashable, *, last_tenth: bool) -> None:
        self.new_in_last_tenth += last_tenth and state not in self.states
        self.states[state] += 1


def role_of(version: int | None, active: int, rolled: int | None) -> str:
    """A version by its role: the active version, the version that is rolled out, another one, or none."""
    if version is None:
        return "none"
    return "active" if version == active else "rolled" if version == rolled else "other"


def analysis_state(state: AnalysisState | None) -> Hashable:
    """The stage of the live analysis, without its counters."""
    if state is None:
        return None
    stage = "baseline" if state.baseline is None else "settling" if state.settling else "judging"
    return stage, state.canary_missing_since is not None, state.good_windows > 0, state.bad_windows > 0


def roll_state(roll: Roll) -> Hashable:
    return roll.phase, analysis_state(roll.analysis), roll.engine_crashes > 0, roll.progressed is None


def pod_state(pod: Any, active: int, rolled: int | None, *, up: bool, silent: bool, asked: int | None) -> Hashable:
    """A pod without its name. ``asked`` is the version that the operator asked it to swap to."""
    busy = pod.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)
    swap = role_of(asked, active, rolled) if busy else "failed" if pod.phase is SwapPhase.FAILED else ""
    version = role_of(pod.version, active, rolled)
    waits = not getattr(pod, "scheduled", True)
    return version, swap, up, silent, waits, pod.slow, bool(pod.salt), getattr(pod, "lie", "")


def rollout_state(machine: RolloutMachine) -> Hashable:
    """The abstract state of the machine that tests the rollout alone."""
    status, active = machine.status, machine.active
    rolled = status.version
    pods = frozenset(
        pod_state(p, active, rolled, up=p.ready, silent=not p.reachable, asked=p.asked) for p in machine.pods
    )
    offered = [v for v, against in machine.evidence.items() if against == active and v > active]
    return (
        roll_state(status),
        role_of(rolled, active, None),
        rolled in machine.rejected,
        rolled in offered,
        bool(offered),
        pods,
        machine.policy.paused,
        None if machine.pin is None else role_of(machine.pin, active, rolled),
        machine.promote == rolled,
        machine.abort == rolled,
        machine.traffic,
    )


def plan_state(machine: PlanMachine) -> Hashable:
    """The abstract state of the machine that tests the whole plan; None before the first version."""
    channel = machine.store.channel
    if channel is None:
        return None
    status, active = machine.status, channel.active
    rolled, candidate = status.rollout.version, status.candidate
    pods = frozenset(
        pod_state(p, active, rolled, up=p.up, silent=p.silent, asked=p.asked.version if p.asked else None)
        for p in machine.cluster.pods
    )
    pin = machine.pinned().get("pin")
    return (
        roll_state(read_roll(status)),
        role_of(rolled, active, None),
        rolled in channel.rejected,
        None if candidate is None else (candidate.phase, min(candidate.attempt, 3), candidate.version == rolled),
        frozenset(job.ended for job in machine.cluster.jobs.values()),
        machine.store.newest > max(active, rolled or 0),
        bool(machine.late_evidence),
        pods,
        machine.store.down,
        machine.cluster.spec["rollout"].get("paused", False),
        None if pin is None else role_of(pin, active, rolled),
        frozenset(key for key, version in machine.cluster.annotations.items() if version == rolled),
        machine.traffic,
        tuple((operator.has_observed, operator.acting) for operator in machine.operators),
    )


def counting_machines(
    examples: int, counts: StateCounts
) -> tuple[type[RuleBasedStateMachine], type[RuleBasedStateMachine]]:
    """Both machines, made to count their state in ``counts`` after every step and before every plan."""

    def last_tenth() -> bool:
        return counts.examples > 0.9 * examples

    class CountingRollout(RolloutMachine):
        def __init__(self) -> None:
            super().__init__()
            counts.examples += 1

        def check_step(self, world: Any, made: Any) -> None:
            counts.plans += 1
            counts.phase_changes[f"{self.status.phase} -> {made.rollout.phase}"] += 1
            counts.count_state(rollout_state(self), last_tenth=last_tenth())
            super().check_step(world, made)

        @invariant()
        def count_step(self) -> None:
            counts.steps += 1
            counts.count_state(rollout_state(self), last_tenth=last_tenth())

    class CountingPlan(PlanMachine):
        def __init__(self) -> None:
            super().__init__()
            counts.examples += 1

        def check_plan(self, observed: Any, made: Any) -> None:
            counts.plans += 1
            if made.status is not None:
                counts.phase_changes[f"{observed.status.rollout.phase} -> {made.status.rollout.phase}"] += 1
            counts.count_state(plan_state(self), last_tenth=last_tenth())
            super().check_plan(observed, made)

        @invariant()
        def count_step(self) -> None:
            counts.steps += 1
            counts.count_state(plan_state(self), last_tenth=last_tenth())

    return CountingRollout, CountingPlan


def main() -> None:
    parser = bench_parser("tests.bench.states", __doc__)
    parser.add_argument("--examples", type=int, default=3000, help="examples per machine")
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
        counts, began = StateCounts(), time.monotonic()
        run_state_machine_as_test(counting_machines(options.examples, counts)[number], settings=deep)
        print(
            f"{name}: {counts.examples} examples, {counts.steps} steps, {counts.plans} plans, "
            f"{len(counts.states)} distinct states ({counts.new_in_last_tenth} of them new in the last tenth), "
            f"{len(counts.phase_changes)} kinds of phase change, {time.monotonic() - began:.0f} s"
        )
        for change, count in sorted(counts.phase_changes.items()):
            print(f"    {change}: {count}")


if __name__ == "__main__":
    main()
