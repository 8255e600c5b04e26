"""Which constants of the speculation controller are best, chosen on traffic that does not score them?

Each constant is varied alone, on simulated engines:

- ``catch_up_rounds`` and ``draft_share_gain`` say what the draft's catch-up weighs: over how many rounds the controller
  writes it off, and how fast the share of rounds that draft follows the rounds.
- ``after_rounds`` and ``doubted_deviation`` say when exploration looks again at an arm that seems dear: after how many
  rounds, and how dear the arm must seem.
- ``odds_weight`` says how many successes and failures a request's odds of 1 count for.
- ``lookup_lead`` says how many more tokens lookup must promise to replace a request's draft.
- ``off_times`` says how often off must be timed before another arm replaces it.

By default traffic is generated. No test and no other bench uses the seeds that choose. The seeds that score are those
of the regret tests. ``--recorded FILE …`` takes the rounds
that tests.bench.speculation.record wrote instead. Half of the recorded requests choose, and the other half score. In
some scenes the pod started beside a busy neighbour, so that its first times are too long.

Prints the speed of each value over that of the value of pods, the geometric mean over the scenes, with a 95 % interval
over seeds: over all scenes, and over those that started beside a busy neighbour. A value is better or worse only if its
whole interval over all scenes is above or below 1. Of each constant the best value is chosen, if one is better. One of
many values may be better by chance. So the chosen ones are then scored together on other requests, beside the values of
pods and against the best fixed arm. Takes about 20 minutes, and with --recorded about five per file and domain. Needs a
CPU only.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.bench_command import bench_parser, commit, load_around, load_average, provenance
from tests.bench.markdown import markdown_row, markdown_table
from tests.bench.speculation.regret import best_fixed_arm
from tests.bench.speculation.scenarios import (
    CHOOSING_SEEDS,
    GENERATED,
    RECORDED_CHOOSING_SEEDS,
    RECORDED_SCORING_SEEDS,
    SCORING_SEEDS,
    Scenario,
    recorded_scenarios,
)

from aurora_protocol.gate.intervals import mean_interval
from aurora_runtime.serving.speculation.controller import ControllerSettings
from aurora_runtime.serving.speculation.estimates.cost_cells import LookSettings

OF_PODS: Final = ControllerSettings()
VALUES: Final[Mapping[str, Sequence[float]]] = {
    "after_rounds": (25, 100, 200),
    "doubted_deviation": (0.15, 0.35, 0.5),
    "catch_up_rounds": (2.0, 4.0, 16.0, 32.0),
    "draft_share_gain": (0.01, 0.02, 0.1, 0.2),
    "odds_weight": (0.5, 1.0, 4.0, 8.0),
    "lookup_lead": (0.0, 0.02, 0.1, 0.2),
    "off_times": (1, 2, 8, 16),
}
"""The values that are tried beside the value of pods, by the constant's name."""
_LOOKS: Final = frozenset(field.name for field in dataclasses.fields(LookSettings))
HEAD: Final = ("constant", "value", "speed against pods' [95 %]", "", "after busy starts [95 %]", "worst scene")

Speeds = Mapping[int, Sequence[float]]
"""Tokens per millisecond in each scenario, by seed."""


@dataclass(frozen=True)
class Candidate:
    """Another value of one constant."""

    constant: str
    value: float

    def applied_to(self, settings: ControllerSettings) -> ControllerSettings:
        """``settings`` with this value."""
        change: dict[str, Any] = {self.constant: self.value}
        if self.constant in _LOOKS:
            change = {"looks": dataclasses.replace(settings.looks, **change)}
        return dataclasses.replace(settings, **change)


@dataclass(frozen=True)
class Comparison:
    """The speed of settings over that of others: geometric means over the scenarios.

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

    def verdict(self) -> str:
        """``better`` or ``worse``. Empty if that is not certain."""
        return "better" if self.low > 1 else "worse" if self.high < 1 else ""


def value_of(settings: ControllerSettings, constant: str) -> float:
    """The value of a constant, by its name in :data:`VALUES`."""
    return float(getattr(settings.looks if constant in _LOOKS else settings, constant))


def candidates(constants: Iterable[str] = tuple(VALUES)) -> list[Candidate]:
    """The values to try."""
    return [Candidate(constant, value) for constant in constants for value in VALUES[constant]]


def simulate(settings: ControllerSettings, seeds: Sequence[int], scenarios: Sequence[Scenario]) -> Speeds:
    """Play each scenario with each seed, in a fresh pod."""
    return {seed: [one.speed(settings, seed) for one in scenarios] for seed in seeds}


def compare(speeds: Speeds, others: Speeds) -> Comparison:
    """``speeds`` over ``others``, paired by seed and scenario."""
    logs = [[math.log(a / b) for a, b in zip(speeds[seed], others[seed], strict=True)] for seed in speeds]
    means = [statistics.fmean(of_seed) for of_seed in logs]
    interval = mean_interval(means, seed=0)
    worst = min(statistics.fmean(of_scenario) for of_scenario in zip(*logs, strict=True))
    return Comparison(*map(math.exp, (statistics.fmean(means), interval.low, interval.high, worst)))


def best_of(compared: Mapping[Candidate, Comparison]) -> ControllerSettings:
    """The settings of pods, with the fastest value of each constant that has values which are better for certain."""
    settings, ascending = OF_PODS, sorted(compared, key=lambda candidate: compared[candidate].ratio)
    for candidate in ascending:
        if compared[candidate].verdict() == "better":
            settings = candidate.applied_to(settings)
    return settings


def of_busy_starts(speeds: Speeds, scenarios: Sequence[Scenario]) -> Speeds:
    """The speeds in the scenes that started beside a busy neighbour."""
    return {seed: [one for one, s in zip(own, scenarios, strict=True) if s.starts_busy] for seed, own in speeds.items()}


def print_comparisons(
    constants: Sequence[str], seeds: Sequence[int], scenarios: Sequence[Scenario]
) -> dict[Candidate, Comparison]:
    """Compare every value with that of pods, a row as it is simulated."""
    print(markdown_table(HEAD, []))
    of_pods, compared = simulate(OF_PODS, seeds, scenarios), dict[Candidate, Comparison]()
    for constant in constants:
        print(markdown_row([constant, f"{value_of(OF_PODS, constant):g}", "1", "pods", "1", "1"]), flush=True)
        for candidate in candidates([constant]):
            own = simulate(candidate.applied_to(OF_PODS), seeds, scenarios)
            compared[candidate] = one = compare(own, of_pods)
            busy = compare(of_busy_starts(own, scenarios), of_busy_starts(of_pods, scenarios))
            figures = (one.interval(), one.verdict(), busy.interval(), f"{one.worst:.3f}")
            print(markdown_row([constant, f"{candidate.value:g}", *figures]), flush=True)
    return compared


def score_table(chosen: ControllerSettings, seeds: Sequence[int], scenarios: Sequence[Scenario]) -> str:
    """The settings of pods and the chosen ones on requests that chose neither."""
    best_arms = {
        seed: [best_fixed_arm(one.requests(seed), one.concurrency, one.costs).speed for one in scenarios]
        for seed in seeds
    }
    of_pods = simulate(OF_PODS, seeds, scenarios)
    score = compare(of_pods, best_arms)
    rows = [["pods", "", f"{score.ratio:.4f}", f"{score.worst:.3f}", "1"]]
    if chosen != OF_PODS:
        changes = {constant: value_of(chosen, constant) for constant in VALUES}
        changed = [f"{name} {v:g}" for name, v in changes.items() if v != value_of(OF_PODS, name)]
        own = simulate(chosen, seeds, scenarios)
        score, against_pods = compare(own, best_arms), compare(own, of_pods)
        rows.append(["chosen", ", ".join(changed), f"{score.ratio:.4f}", f"{score.worst:.3f}", against_pods.interval()])
    head = ["settings", "changes", "speed against the best fixed arm", "worst scene", "speed against pods' [95 %]"]
    return markdown_table(head, rows)


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.speculation.choose", __doc__)
    parser.add_argument("--constants", nargs="+", choices=list(VALUES), default=list(VALUES), help="what is varied")
    parser.add_argument(
        "--recorded", nargs="+", type=Path, metavar="FILE", help="replay recorded rounds instead of generated ones"
    )
    options = parser.parse_args()
    try:
        options.scenarios = recorded_scenarios(options.recorded) if options.recorded else GENERATED
    except (OSError, ValueError) as error:
        parser.error(f"--recorded: {error}")
    return options


def main() -> None:
    options = _options()
    load_before, code = load_average(), commit()
    choosing = RECORDED_CHOOSING_SEEDS if options.recorded else CHOOSING_SEEDS
    scoring = RECORDED_SCORING_SEEDS if options.recorded else SCORING_SEEDS
    compared = print_comparisons(options.constants, choosing, options.scenarios)
    print(f"\n{score_table(best_of(compared), scoring, options.scenarios)}")
    print(f"\n{provenance('tests.bench.speculation.choose', load_around(load_before), code)}")


if __name__ == "__main__":
    main()
