"""How a controller did against the best fixed arm on the same traffic: its regret."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.bench.speculation.cost_tables import CostTable, Noise
from tests.bench.speculation.recorded_rounds import RecordedRequest
from tests.bench.speculation.simulator import (
    Load,
    PlayedRound,
    against_off,
    load_of,
    play,
    speed,
    worst_window,
)

from aurora_runtime.engine.arms import OFF, Arm, arms_within
from aurora_runtime.serving.speculation.controller import Controller
from aurora_runtime.serving.speculation.lookup import TOKENS_PER_MATCH

ARMS = arms_within(draft_steps=7, lookup_steps=11)
WINDOW_ROUNDS = 200
"""Rounds over which a fresh pod must be about as fast as off. In shorter stretches one exploring round shows."""


def new_controller() -> Controller:
    """A fresh pod's controller."""
    return Controller(ARMS)


def new_noise(seed: int = 1) -> Noise:
    """A noisy machine."""
    return Noise(random.Random(seed))  # noqa: S311 - no secret


def new_busy_noise(seed: int = 1) -> Noise:
    """A machine with a busy neighbour: half of the times are two to four times too long."""
    return replace(new_noise(seed), spread=0.3, outliers=0.5)


@dataclass(frozen=True)
class BestFixedArm:
    """The fixed arm that is fastest on some traffic, and its speed in tokens per millisecond."""

    arm: Arm
    speed: float
    speedup: float
    """The speed over off's."""


def best_fixed_arm(traffic: Sequence[RecordedRequest], concurrency: int | Load, costs: CostTable) -> BestFixedArm:
    """The best of off, lookup with a fixed width, and the draft with a fixed number of steps.

    The best is chosen afterwards on the same requests, so it is a little better than anyone could have known.
    """
    speeds = {arm: fixed_arm_speed(arm, traffic, concurrency, costs) for arm in ARMS}
    best = max(speeds, key=speeds.__getitem__)
    return BestFixedArm(best, speeds[best], speeds[best] / speeds[OFF])


def fixed_arm_speed(
    arm: Arm,
    traffic: Sequence[RecordedRequest],
    concurrency: int | Load,
    costs: CostTable,
) -> float:
    """Tokens per millisecond of :func:`play` with one arm, from whole requests instead of round by round.

    The draft processes each round. So all rounds between two ends of requests take the same time.
    """
    load = load_of(concurrency)
    answers = [_tokens_of_rounds(arm, request) for request in traffic]
    starts, ends, now, milliseconds = list[int](), list[int](), 0, 0.0
    for begun in range(len(answers) + 1):
        while len(ends) >= load(begun):
            size, before, now = len(ends), now, heapq.heappop(ends)
            milliseconds += (now - before) * costs(arm, size, False)
        if begun < len(answers):
            starts.append(now)
            heapq.heappush(ends, now + len(answers[begun]))
    tokens = sum(sum(answer[: now - start]) for start, answer in zip(starts, answers, strict=True))
    return tokens / milliseconds


def _tokens_of_rounds(arm: Arm, request: RecordedRequest) -> list[int]:
    rights = request.draft_right if arm.drafts else request.lookup_right
    found, place = list[int](), 0
    while place < request.places:
        most = arm.steps if arm.drafts else min(arm.steps, TOKENS_PER_MATCH * request.lookup_match[place])
        found.append(min(rights[place], most) + 1)
        place += found[-1]
    return found


@dataclass(frozen=True)
class Regret:
    """A controller's run.

    Attributes:
        of_best: its speed over the best fixed arm's.
        worst_window: the lowest speed over off's in any :data:`WINDOW_ROUNDS` rounds. Infinite if there are fewer.
        exploring_rounds: the share of rounds that explored.
    """

    best: BestFixedArm
    of_best: float
    speedup: float
    worst_window: float
    exploring_rounds: float
    rounds: Sequence[PlayedRound]


def measure_regret(traffic: Sequence[RecordedRequest], concurrency: int, costs: CostTable, seed: int = 1) -> Regret:
    """Play the traffic with a fresh controller and with every fixed arm."""
    best = best_fixed_arm(traffic, concurrency, costs)
    rounds = list(play(new_controller(), traffic, concurrency, costs, new_noise(seed)))
    return Regret(
        best=best,
        of_best=speed(rounds) / best.speed,
        speedup=against_off(rounds),
        worst_window=worst_window(rounds, WINDOW_ROUNDS),
        exploring_rounds=sum(r.explores for r in rounds) / len(rounds),
        rounds=rounds,
    )
