"""Pods whose batch is in another range of batch sizes every few rounds, for tests of the controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.speculation.cost_tables import CostTable
from tests.bench.speculation.generated_rounds import TrafficKind, generate
from tests.bench.speculation.regret import BestFixedArm, best_fixed_arm, new_controller, new_noise
from tests.bench.speculation.simulator import Load, PlayedRound, load_in_turn, play, speed

from aurora_runtime.engine.arms import OFF

REQUESTS: Final = 600
LOADS: Final = {
    "4": load_in_turn((4,), 1),
    "1 to 8": load_in_turn((1, 8, 3, 6, 2, 5), 4),
    "4 to 16": load_in_turn((4, 16, 8, 12), 6),
    "4 to 32": load_in_turn((4, 32, 8, 24, 16), 12),
}


@dataclass(frozen=True)
class ChangingScene:
    """Traffic, load and machine of pods."""

    name: str
    kind: TrafficKind
    load: Load
    costs: CostTable

    def pod(self, seed: int) -> Pod:
        """A fresh pod. Equal seeds give equal pods."""
        requests = generate(self.kind, REQUESTS, seed)
        rounds = list(play(new_controller(seed), requests, self.load, self.costs, new_noise(seed)))
        return Pod(rounds, best_fixed_arm(requests, self.load, self.costs))


@dataclass(frozen=True)
class Pod:
    """A pod's run, and the best fixed arm on its requests."""

    rounds: Sequence[PlayedRound]
    best: BestFixedArm

    @property
    def late(self) -> Sequence[PlayedRound]:
        """The second half of the rounds."""
        return self.rounds[len(self.rounds) // 2 :]

    @property
    def off_timings(self) -> list[PlayedRound]:
        return [r for r in self.late if r.explores and r.arm == OFF]

    @property
    def off_share(self) -> float:
        return len(self.off_timings) / len(self.late)

    @property
    def off_loss(self) -> float:
        """The share of the time that rounds which time off lose against the best fixed arm's mean speedup."""
        lost = sum(r.milliseconds - r.off_milliseconds / self.best.speedup for r in self.off_timings)
        return lost / sum(r.milliseconds for r in self.late)

    @property
    def of_best(self) -> float:
        return speed(self.rounds) / self.best.speed
