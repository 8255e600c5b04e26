"""Which constants of the speculation controller are best, chosen on traffic that does not score them?

Two constants say what the draft's catch-up weighs: over how many rounds the controller writes it off, and how fast the
share of rounds that draft follows the rounds (``ControllerSettings``). Two say when exploration looks again at an arm
that seems dear: after how many rounds, and how dear the arm must seem (``LookSettings``). Each is varied alone, on
simulated engines, on traffic of seeds that no test and no other bench uses. In some scenes the pod started beside a
busy neighbour, so that its first times are too long. The settings of pods and the best ones found are then scored on
the seeds of the regret tests, against the best fixed arm.

Prints the speed of each setting over that of the settings of pods, the geometric mean over the scenes, with a 95 %
interval over seeds: over all scenes, and over those that started beside a busy neighbour. A setting is better only if
its whole interval over all scenes is above 1. Then prints the scores. Takes about ten minutes. Needs a CPU only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.bench_command import bench_parser, commit, machine
from tests.bench.markdown import markdown_row, markdown_table
from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, PROSE, SQL, generate, in_turn
from tests.bench.speculation.recorded_rounds import RecordedRequest
from tests.bench.speculation.regret import best_fixed_arm, new_busy_noise, new_controller, new_noise
from tests.bench.speculation.simulator import play, speed

from aurora_protocol.gate.intervals import mean_interval
from aurora_runtime.serving.speculation.controller import ControllerSettings
from aurora_runtime.serving.speculation.estimates.cost_cells import LookSettings

CHOOSING_SEEDS: Final = tuple(range(100, 106))
SCORING_SEEDS: Final = (0, 1)
"""Seeds with which tests/unit/serving/speculation/test_regret.py scores the controller."""
OF_PODS: Final = ControllerSettings()
CATCH_UP_ROUNDS: Final = (2.0, 4.0, 16.0, 32.0)
DRAFT_SHARE_GAINS: Final = (0.01, 0.02, 0.1, 0.2)
LOOK_AFTER_ROUNDS: Final = (25, 100, 200)
DOUBTED_DEVIATIONS: Final = (0.15, 0.35, 0.5)
TRAFFICS: Final = ("docstrings", "sql", "mixed")
"""Traffic on which lookup and the draft take turns, so that catch-ups count."""
EARLY_SEED: Final = 5000
"""Added to the seed of the requests beside a busy neighbour."""


@dataclass(frozen=True)
class Scenario:
    """Traffic, load and machine of one simulation.

    Attributes:
        starts_busy: whether the controller first played requests beside a busy neighbour. They do not count.
    """

    traffic: str
    concurrency: int
    costs: CostTable
    starts_busy: bool = False

    def requests(self, seed: int) -> list[RecordedRequest]:
        """The same requests for equal seeds."""
        return self._generate(40 if self.concurrency == 1 else 16 * self.concurrency, seed)

    def speed(self, settings: ControllerSettings, seed: int) -> float:
        """Tokens per millisecond of a pod with ``settings``."""
        controller = new_controller(seed, settings)
        if self.starts_busy:
            early = self._generate(10 * self.concurrency, seed + EARLY_SEED)
            for _ in play(controller, early, self.concurrency, self.costs, new_busy_noise(seed)):
                pass
        return speed(list(play(controller, self.requests(seed), self.concurrency, self.costs, new_noise(seed))))

    def _generate(self, count: int, seed: int) -> list[RecordedRequest]:
        if self.traffic == "mixed":
            return in_turn((JSON, DOCSTRINGS, SQL, PROSE), count, seed)
        return generate({"json": JSON, "docstrings": DOCSTRINGS, "sql": SQL}[self.traffic], count, seed)


MACHINES: Final = (cpu_milliseconds, gpu_milliseconds)
SCENARIOS: Final = (
    *itertools.starmap(Scenario, itertools.product(TRAFFICS, (1, 4, 16), MACHINES)),
    *itertools.starmap(Scenario, itertools.product(("json", "docstrings"), (1, 4), MACHINES, [True])),
)
Speeds = Mapping[int, Sequence[float]]
"""Tokens per millisecond in each scenario, by seed."""


@dataclass(frozen=True)
class Comparison:
    """The speed of settings over that of the settings of pods: geometric means over the scenarios.

    Attributes:
        low, high: the 95 % interval over seeds.
        worst: the lowest ratio in any scenario, mean over seeds.
    """

    ratio: float
    low: float
    high: float
    worst: float

    def interval(self) -> str:
        return f"{self.ratio:.4f} [{self.low:.4f}, {self.high:.4f}]"


def candidates() -> list[ControllerSettings]:
    """The settings of pods, and settings that differ from them in one constant."""
    return [
        OF_PODS,
        *(dataclasses.replace(OF_PODS, looks=LookSettings(after_rounds=rounds)) for rounds in LOOK_AFTER_ROUNDS),
        *(dataclasses.replace(OF_PODS, looks=LookSettings(doubted_deviation=doubt)) for doubt in DOUBTED_DEVIATIONS),
        *(dataclasses.replace(OF_PODS, catch_up_rounds=rounds) for rounds in CATCH_UP_ROUNDS),
        *(dataclasses.replace(OF_PODS, draft_share_gain=gain) for gain in DRAFT_SHARE_GAINS),
    ]


def simulate(settings: ControllerSettings, seeds: Sequence[int], scenarios: Sequence[Scenario] = SCENARIOS) -> Speeds:
    """Play each scenario with each seed, in a fresh pod."""
    return {seed: [one.speed(settings, seed) for one in scenarios] for seed in seeds}


def compare(speeds: Speeds, others: Speeds) -> Comparison:
    """``speeds`` over ``others``, paired by seed and scenario."""
    logs = [[math.log(a / b) for a, b in zip(speeds[seed], others[seed], strict=True)] for seed in speeds]
    means = [statistics.fmean(of_seed) for of_seed in logs]
    interval = mean_interval(means, seed=0)
    worst = min(statistics.fmean(of_scenario) for of_scenario in zip(*logs, strict=True))
    return Comparison(*map(math.exp, (statistics.fmean(means), interval.low, interval.high, worst)))


def best_of(compared: Mapping[ControllerSettings, Comparison]) -> ControllerSettings:
    """The fastest of the settings that are better for certain. The settings of pods where there are none."""
    better = {settings: one.ratio for settings, one in compared.items() if one.low > 1}
    return max(better, key=lambda settings: better[settings], default=OF_PODS)


def of_busy_starts(speeds: Speeds) -> Speeds:
    """The speeds in the scenes that started beside a busy neighbour."""
    return {seed: [one for one, s in zip(own, SCENARIOS, strict=True) if s.starts_busy] for seed, own in speeds.items()}


def constants(settings: ControllerSettings) -> list[str]:
    """The constants that are varied, as cells of a table."""
    looks = settings.looks
    figures = (settings.catch_up_rounds, settings.draft_share_gain, looks.after_rounds, looks.doubted_deviation)
    return [f"{figure:g}" for figure in figures]


def main() -> None:
    bench_parser("tests.bench.speculation.choose", __doc__).parse_args()
    head = ["catch-up rounds", "draft share gain", "look after rounds", "doubted deviation"]
    print(markdown_table([*head, "speed against pods' [95 %]", "after busy starts [95 %]", "worst scene"], []))
    of_pods = simulate(OF_PODS, CHOOSING_SEEDS)
    compared = dict[ControllerSettings, Comparison]()
    for settings in candidates()[1:]:
        own = simulate(settings, CHOOSING_SEEDS)
        compared[settings] = one = compare(own, of_pods)
        busy = compare(of_busy_starts(own), of_busy_starts(of_pods))
        print(markdown_row([*constants(settings), one.interval(), busy.interval(), f"{one.worst:.3f}"]), flush=True)
    best_arms = {
        seed: [best_fixed_arm(one.requests(seed), one.concurrency, one.costs).speed for one in SCENARIOS]
        for seed in SCORING_SEEDS
    }
    chosen = best_of(compared)
    rows = []
    for name, settings in {"pods": OF_PODS, "chosen": chosen}.items():
        if name == "pods" or settings != OF_PODS:
            score = compare(simulate(settings, SCORING_SEEDS), best_arms)
            rows.append([name, *constants(settings), f"{score.ratio:.4f}", f"{score.worst:.3f}"])
    print()
    print(markdown_table(["settings", *head, "speed against the best fixed arm", "worst scene"], rows))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n`python -m tests.bench.speculation.choose`; {machine()}; commit {commit()}; load {load}")


if __name__ == "__main__":
    main()
