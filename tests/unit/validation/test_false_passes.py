"""How often a measurement passes or ends, in simulated rounds of one bar (docs/explanation/gate-statistics.md)."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import pytest

from aurora_api.v1alpha1.validation import MAX_ROUNDS, MIN_ROUNDS
from aurora_protocol.evidence_records import Arm
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.throughput_ratios import Confidence, t_quantile
from aurora_protocol.gate.verdict import Bar
from aurora_runtime.validation.rounds import MIN_CHANCE, SHARE, chance, is_look

BAR = Bar(Arm.CANDIDATE, Arm.ACTIVE, 1, 1.05)
POLICY = GatePolicy(concurrencies=(1,), min_improvement=0.05, tolerance=0.0)
LOOKS = [n for n in range(MIN_ROUNDS, MAX_ROUNDS) if is_look(POLICY, n)]


def outcome(log_ratios: Sequence[float], last: int) -> tuple[str, int]:
    """How a measurement with these rounds ends, and after how many of them.

    The bar is at 0, and ``last`` is the last round.
    """
    sums, squares = list(accumulate(log_ratios)), list(accumulate(x * x for x in log_ratios))
    for rounds in [*(n for n in LOOKS if n < last), last]:
        mean = sums[rounds - 1] / rounds
        deviation = math.sqrt(max(0.0, squares[rounds - 1] - rounds * mean * mean) / (rounds - 1))
        level = Confidence.FINAL if rounds == last else Confidence.EARLY
        half_width = t_quantile(rounds - 1, level) * deviation / math.sqrt(rounds)
        if abs(mean) >= half_width:
            return ("pass" if mean > 0 else "reject"), rounds
        if rounds < last and chance(mean, deviation, rounds, last) < MIN_CHANCE:
            return "let go", rounds
    return "undecided", last


def simulated(
    true_ratio: float, noise: float, *, last: int = MAX_ROUNDS, trials: int = 1500
) -> tuple[Counter[str], float]:
    """The outcomes of measurements whose candidate is ``true_ratio`` times as fast, and the mean of their rounds."""
    rng, lead = random.Random(7), math.log(true_ratio / BAR.minimum_ratio)  # noqa: S311 - noise, no secret
    ends = [outcome([rng.gauss(lead, noise) for _ in range(last)], last) for _ in range(trials)]
    return Counter(kind for kind, _ in ends), sum(rounds for _, rounds in ends) / trials


@pytest.mark.parametrize("last", [MAX_ROUNDS, SHARE * MIN_ROUNDS, 40])
def test_a_candidate_on_the_bar_passes_as_seldom_as_promised(last: int) -> None:
    outcomes, _ = simulated(1.05, 0.15, last=last, trials=4000)
    assert outcomes["pass"] / 4000 <= 0.043


@pytest.mark.parametrize(
    ("true_ratio", "noise", "least_passes", "most_rounds"),
    [(1.2, 0.15, 0.99, 18), (1.2, 0.25, 0.95, 38), (1.5, 0.15, 0.99, 7), (1.2, 0.08, 0.99, 9)],
)
def test_a_better_candidate_passes_soon(
    true_ratio: float, noise: float, least_passes: float, most_rounds: float
) -> None:
    outcomes, rounds = simulated(true_ratio, noise)
    assert outcomes["pass"] / outcomes.total() >= least_passes
    assert rounds <= most_rounds


def test_a_candidate_without_a_gain_is_let_go_soon() -> None:
    outcomes, rounds = simulated(1.0, 0.15)
    assert outcomes["pass"] / outcomes.total() <= 0.005
    assert rounds <= 14
