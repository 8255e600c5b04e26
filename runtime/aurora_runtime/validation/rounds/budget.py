"""Decides after each round whether a measurement goes on, and at which concurrencies. Pure.

A measurement ends when

- it is decided: its verdict is final at the early confidence level;
- it is hopeless: the rounds that are left would decide it with a probability below :data:`MIN_CHANCE`;
- it is blocked: every ratio is decided, but the verdict stays open for a reason that no further round removes, such as
  a failed request of the active draft;
- it gives way: a newer version waits, and the measurement has had twice ``min_rounds``;
- its rounds or its time are used up.

The final confidence level decides once, when the measurement ends for a reason that its ratios do not choose: its
rounds or its time are used up, or it has had its share of rounds while a newer version waits. A verdict that is
final only at that level does not end a measurement early. At the end it counts as decided.

The forecast assumes normal noise, as Student's t does. After n rounds with mean m and standard deviation s, the mean of
N rounds is normal around m with the variance s^2 (1/n - 1/N), and the half-width of its interval is t s / sqrt(N). This
is the predictive power of Spiegelhalter, Freedman and Blackburn (1986) with a flat prior.

Invariants: a measurement whose stored verdict is final ends as decided, and no other does. While a newer version waits,
an undecided one takes at most twice the policy's fewest rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aurora_protocol.evidence_records import MeasurementEnd, RatioEstimate, Verdict, VerdictKind
from aurora_protocol.gate.throughput_ratios import t_quantile
from aurora_protocol.gate.verdict import Bar, GatePolicy, bars

MIN_CHANCE: Final = 0.05
"""Probability of a decision below which further rounds are not worth their time."""
FINAL_VERDICTS: Final = frozenset({VerdictKind.PASS, VerdictKind.REJECT})


@dataclass(frozen=True)
class Forecast:
    """One bar, and its ratio after ``rounds`` rounds. All figures are logarithms of ratios."""

    bar: Bar
    rounds: int
    """Rounds behind the ratio, at least 2."""
    lead: float
    """Mean minus bar. Negative: the candidate is below the bar."""
    deviation: float
    """Standard deviation of a round."""

    @classmethod
    def of(cls, bar: Bar, ratio: RatioEstimate, rounds: int) -> Forecast:
        """The forecast of ``ratio``, whose interval is at the final confidence level.

        Args:
            rounds: rounds of the candidate. An unpaired ratio counts those of the baseline if they are fewer, but only
                the candidate's grow. The forecast then promises too much, so that no measurement ends too soon.
        """
        half_width = (math.log(ratio.high) - math.log(ratio.low)) / 2
        deviation = half_width * math.sqrt(rounds) / t_quantile(rounds - 1)
        return cls(bar, rounds, math.log(ratio.estimate) - math.log(bar.minimum_ratio), deviation)

    def half_width(self, rounds: int) -> float:
        """Expected half-width of the interval after ``rounds`` rounds, at least 2."""
        return t_quantile(rounds - 1) * self.deviation / math.sqrt(rounds)

    def chances(self, rounds: int) -> tuple[float, float]:
        """Probabilities that the ratio clears the bar, and that it misses the bar, after ``rounds`` rounds in all."""
        rounds = max(rounds, self.rounds)
        half_width = self.half_width(rounds)
        spread = self.deviation * math.sqrt(max(0.0, 1 / self.rounds - 1 / rounds))
        if spread == 0.0:
            return float(self.lead >= half_width), float(self.lead < -half_width)
        normal = statistics.NormalDist(self.lead, spread)
        return 1 - normal.cdf(half_width), normal.cdf(-half_width)


@dataclass(frozen=True)
class Progress:
    """A measurement after one of its rounds."""

    policy: GatePolicy
    verdict: Verdict
    """At the final confidence level."""
    early: Verdict
    """At the early confidence level."""
    rounds: int
    """Rounds done."""
    rounds_allowed: int
    """Rounds that fit into the budget and into the time, those done included."""
    newer_version: int | None = None
    """A newer version that waits to be measured. The trainer registers a version only if its held-out acceptance, on
    the traffic of now, is larger than the former version's."""


@dataclass(frozen=True)
class Ending:
    """Why a measurement ends. The message is empty for a decided one, whose verdict has the reasons."""

    kind: MeasurementEnd
    message: str = ""


def ending(progress: Progress) -> Ending | None:
    """Why the measurement ends after this round; None while it goes on."""
    if progress.early.kind in FINAL_VERDICTS:
        return Ending(MeasurementEnd.DECIDED)
    if progress.rounds >= progress.rounds_allowed:
        return ending_of_last_round(progress.verdict, f"undecided after {progress.rounds} rounds")
    if progress.rounds < progress.policy.min_rounds:
        return None
    if progress.verdict.kind in FINAL_VERDICTS:
        return Ending(MeasurementEnd.DECIDED) if _has_had_its_share(progress) else None
    undecided = _undecided_forecasts(progress)
    if undecided is not None and not undecided:
        message = f"undecided after {progress.rounds} rounds, although every ratio is decided: no round changes that"
        return Ending(MeasurementEnd.BLOCKED, message)
    if undecided and _chance_of_a_decision(undecided, progress.rounds_allowed) < MIN_CHANCE:
        message = f"undecided after {progress.rounds} rounds, and {progress.rounds_allowed} would hardly decide it"
        return Ending(MeasurementEnd.HOPELESS, message)
    if _has_had_its_share(progress):
        message = f"undecided after {progress.rounds} rounds, gives way to version {progress.newer_version}"
        return Ending(MeasurementEnd.GAVE_WAY, message)
    return None


def ending_of_last_round(verdict: Verdict, undecided: str) -> Ending:
    """Why a measurement ends whose rounds or time are used up.

    Args:
        verdict: after the last whole round, at the final confidence level.
        undecided: the message if that verdict is not final.
    """
    if verdict.kind in FINAL_VERDICTS:
        return Ending(MeasurementEnd.DECIDED)
    return Ending(MeasurementEnd.BUDGET_USED, undecided)


def open_concurrencies(policy: GatePolicy, early: Verdict) -> tuple[int, ...]:
    """The concurrencies to measure at in the next round: those with a bar that is not decided at the early level.

    All while there are too few rounds, or when only something else than a bar is open. The order is the policy's.
    """
    open_ = set()
    for bar in bars(policy):
        ratio = _ratio_of(bar, early)
        if ratio is None or ratio.rounds < policy.min_rounds or _straddles(bar, ratio):
            open_.add(bar.concurrency)
    return tuple(c for c in policy.concurrencies if c in open_) or policy.concurrencies


def _ratio_of(bar: Bar, verdict: Verdict) -> RatioEstimate | None:
    names = (bar.numerator, bar.denominator, bar.concurrency)
    return next((r for r in verdict.ratios if (r.numerator, r.denominator, r.concurrency) == names), None)


def _straddles(bar: Bar, ratio: RatioEstimate) -> bool:
    return ratio.low < bar.minimum_ratio <= ratio.high


def _has_had_its_share(progress: Progress) -> bool:
    """Whether a newer version waits, and the measurement has had all rounds that it may take meanwhile."""
    return progress.newer_version is not None and progress.rounds >= 2 * progress.policy.min_rounds


def _undecided_forecasts(progress: Progress) -> tuple[Forecast, ...] | None:
    """Forecasts of the bars that are measured further. None when a bar has no ratio yet."""
    found = []
    for bar in bars(progress.policy):
        ratio, early = _ratio_of(bar, progress.verdict), _ratio_of(bar, progress.early)
        if ratio is None or early is None:
            return None
        if _straddles(bar, early):
            found.append(Forecast.of(bar, ratio, ratio.rounds if ratio.paired else progress.rounds))
    return tuple(found)


def _chance_of_a_decision(undecided: Sequence[Forecast], rounds: int) -> float:
    """An upper bound of the probability of a final verdict: every bar clears, or one misses."""
    chances = [forecast.chances(rounds) for forecast in undecided]
    return min(1.0, min(clears for clears, _ in chances) + sum(misses for _, misses in chances))
