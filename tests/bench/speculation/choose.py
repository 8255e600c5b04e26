"""Which constants of the speculation controller are best, chosen on traffic that does not score them?

Two constants say what the draft's catch-up weighs: over how many rounds the controller writes it off, and how fast the
share of rounds that draft follows the rounds (``ControllerSettings``). Each is varied alone, on simulated engines, on
traffic of seeds that no test and no other bench uses. The settings of pods and the best ones found are then scored on
the seeds of the regret tests, against the best fixed arm.

Prints the speed of each setting over that of the settings of pods, the geometric mean over traffics, concurrencies and
cost tables, with a 95 % interval over seeds. A setting is better only if its whole interval is above 1. Then prints the
scores. Takes about two minutes on a quiet core (estimated). Needs a CPU only.
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
from tests.bench.markdown import markdown_table
from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, PROSE, SQL, generate, in_turn
from tests.bench.speculation.recorded_rounds import RecordedRequest
from tests.bench.speculation.regret import best_fixed_arm, new_controller, new_noise
from tests.bench.speculation.simulator import play, speed

from aurora_protocol.gate.intervals import mean_interval
from aurora_runtime.serving.speculation.controller import ControllerSettings

CHOOSING_SEEDS: Final = (1001, 1002, 1003, 1004)
SCORING_SEEDS: Final = (0, 1)
"""Seeds with which tests/unit/serving/speculation/test_regret.py scores the controller."""
OF_PODS: Final = ControllerSettings()
CATCH_UP_ROUNDS: Final = (2.0, 4.0, 16.0, 32.0)
DRAFT_SHARE_GAINS: Final = (0.01, 0.02, 0.1, 0.2)
TRAFFICS: Final = ("docstrings", "sql", "mixed")
"""Traffic on which lookup and the draft take turns, so that catch-ups count."""


@dataclass(frozen=True)
class Scenario:
    """Traffic, load and machine of one simulation."""

    traffic: str
    concurrency: int
    costs: CostTable

    def requests(self, seed: int) -> list[RecordedRequest]:
        """The same requests for equal seeds."""
        count = 40 if self.concurrency == 1 else 16 * self.concurrency
        if self.traffic == "mixed":
            return in_turn((JSON, DOCSTRINGS, SQL, PROSE), count, seed)
        return generate(DOCSTRINGS if self.traffic == "docstrings" else SQL, count, seed)


SCENARIOS: Final = tuple(
    itertools.starmap(Scenario, itertools.product(TRAFFICS, (1, 4, 16), (cpu_milliseconds, gpu_milliseconds)))
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


def candidates() -> list[ControllerSettings]:
    """The settings of pods, and settings that differ from them in one constant."""
    return [
        OF_PODS,
        *(dataclasses.replace(OF_PODS, catch_up_rounds=rounds) for rounds in CATCH_UP_ROUNDS),
        *(dataclasses.replace(OF_PODS, draft_share_gain=gain) for gain in DRAFT_SHARE_GAINS),
    ]


def simulate(settings: ControllerSettings, seeds: Sequence[int], scenarios: Sequence[Scenario] = SCENARIOS) -> Speeds:
    """Play each scenario with each seed, in a fresh pod."""
    return {
        seed: [
            speed(list(play(new_controller(seed, settings), one.requests(seed), one.concurrency, one.costs, noise)))
            for one in scenarios
            for noise in (new_noise(seed),)
        ]
        for seed in seeds
    }


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


def main() -> None:
    bench_parser("tests.bench.speculation.choose", __doc__).parse_args()
    speeds = {settings: simulate(settings, CHOOSING_SEEDS) for settings in candidates()}
    compared = {settings: compare(own, speeds[OF_PODS]) for settings, own in speeds.items() if settings != OF_PODS}
    rows = [
        [f"{s.catch_up_rounds:g}", f"{s.draft_share_gain:g}", f"{c.ratio:.4f} [{c.low:.4f}, {c.high:.4f}]",
         f"{c.worst:.3f}"]
        for s, c in compared.items()
    ]  # fmt: skip
    head = ["catch-up rounds", "draft share gain", "speed against pods' [95 %]", "worst scenario"]
    print(markdown_table(head, rows), flush=True)
    best_arms = {
        seed: [best_fixed_arm(one.requests(seed), one.concurrency, one.costs).speed for one in SCENARIOS]
        for seed in SCORING_SEEDS
    }
    chosen = best_of(compared)
    rows = []
    for name, settings in {"pods": OF_PODS, "chosen": chosen}.items():
        if name == "pods" or settings != OF_PODS:
            score = compare(simulate(settings, SCORING_SEEDS), best_arms)
            figures = [f"{settings.catch_up_rounds:g}", f"{settings.draft_share_gain:g}"]
            rows.append([name, *figures, f"{score.ratio:.4f}", f"{score.worst:.3f}"])
    print()
    print(markdown_table(["settings", *head[:2], "speed against the best fixed arm", head[3]], rows))
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n`python -m tests.bench.speculation.choose`; {machine()}; commit {commit()}; load {load}")


if __name__ == "__main__":
    main()
