"""Decides whether a measurement goes on, and with which arms at which concurrencies. Pure.

Rounds are small: each arm answers one prompt for each request at a time. The samples are looked at after the policy's
fewest rounds and then whenever there are a quarter more (:func:`is_look`), so a clear candidate is decided soon, and a
long measurement has few looks. A measurement ends when

- it is decided: its verdict is final at the early confidence level;
- it is hopeless: with the rounds that are left it would pass with a probability below :data:`MIN_CHANCE`;
- it gives way: a newer version waits, and the measurement has had :data:`SHARE` times ``min_rounds``;
- its rounds or its time are used up.

The final confidence level decides once, when the measurement ends for a reason that its ratios do not choose: its
rounds or its time are used up, or it has had its share of rounds while a newer version waits. A verdict that is
final only at that level does not end a measurement early. At the end it counts as decided.

The forecast assumes normal noise, as Student's t does. After n rounds with mean m and standard deviation s, the mean of
N rounds is normal around m with the variance s^2 (1/n - 1/N), and the half-width of its interval is t s / sqrt(N). This
is the predictive power of Spiegelhalter, Freedman and Blackburn (1986) with a flat prior.

Invariants: a measurement whose stored verdict is final ends as decided, and no other does. While a newer version waits,
an undecided one ends at the first look after its share of rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aurora_protocol.evidence_records import Arm, MeasurementEnd, RatioEstimate, Verdict, VerdictKind
from aurora_protocol.gate.throughput_ratios import t_quantile
from aurora_protocol.gate.verdict import Bar, GatePolicy, bars

SHARE: Final = 5
"""How many times the policy's fewest rounds an undecided measurement may take while a newer version waits."""
MIN_CHANCE: Final = 0.05
"""Probability of a pass below which further rounds are not worth their time."""
LOOK_GROWTH: Final = 1.25
"""How many times as many rounds there are at each look as at the one before."""
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
    def of(cls, bar: Bar, ratio: RatioEstimate) -> Forecast:
        """The forecast of ``ratio``, whose interval is at the final confidence level."""
        rounds, half_width = ratio.rounds, (math.log(ratio.high) - math.log(ratio.low)) / 2
        deviation = half_width * math.sqrt(rounds) / t_quantile(rounds - 1)
        return cls(bar, rounds, math.log(ratio.estimate) - math.log(bar.minimum_ratio), deviation)

    def half_width(self, rounds: int) -> float:
        """Expected half-width of the interval after ``rounds`` rounds, at least 2."""
        return t_quantile(rounds - 1) * self.deviation / math.sqrt(rounds)

    def chance(self, rounds: int) -> float:
        """Probability that the ratio clears the bar after ``rounds`` rounds in all."""
        rounds = max(rounds, self.rounds)
        half_width = self.half_width(rounds)
        spread = self.deviation * math.sqrt(max(0.0, 1 / self.rounds - 1 / rounds))
        if spread == 0.0:
            return float(self.lead >= half_width)
        return 1 - statistics.NormalDist(self.lead, spread).cdf(half_width)


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
    if progress.rounds >= progress.rounds_allowed or _has_had_its_share(progress):
        return ending_of_last_round(progress.verdict, progress.newer_version)
    if progress.rounds < progress.policy.min_rounds or progress.verdict.kind in FINAL_VERDICTS:
        return None
    undecided = _undecided_forecasts(progress)
    if undecided and _chance_of_a_pass(undecided, progress) < MIN_CHANCE:
        message = f"undecided after {progress.rounds} rounds, and would hardly pass within {progress.rounds_allowed}"
        return Ending(MeasurementEnd.HOPELESS, message)
    return None


def ending_of_last_round(verdict: Verdict, newer_version: int | None = None) -> Ending:
    """Why a measurement ends that has used up its rounds, its time, or its share of rounds while a version waits.

    ``verdict`` is at the final confidence level.
    """
    if verdict.kind in FINAL_VERDICTS:
        return Ending(MeasurementEnd.DECIDED)
    if newer_version is not None:
        return Ending(MeasurementEnd.GAVE_WAY, f"undecided, gives way to version {newer_version}")
    return Ending(MeasurementEnd.BUDGET_USED, "undecided when its rounds or its time were used up")


def is_look(policy: GatePolicy, rounds: int) -> bool:
    """Whether the samples are looked at after ``rounds`` rounds.

    Before the fewest rounds no ratio decides, but a failed request or another answer does.
    """
    look = policy.min_rounds
    while look < rounds:
        look = max(look + 1, math.ceil(LOOK_GROWTH * look))
    return look == rounds or rounds < policy.min_rounds


def open_arms(policy: GatePolicy, early: Verdict) -> dict[int, set[Arm]]:
    """The arms to measure at each concurrency in the next rounds: those of a bar that the early level does not decide.

    All while there are too few rounds, or when only something else than a bar is open. NGRAM, which no bar names, goes
    on with its concurrency.
    """
    open_: dict[int, set[Arm]] = {}
    for bar in bars(policy):
        ratio = _ratio_of(bar, early)
        if ratio is None or ratio.rounds < policy.min_rounds or _straddles(bar, ratio):
            open_.setdefault(bar.concurrency, {Arm.NGRAM}).update((bar.numerator, bar.denominator))
    return open_ or {concurrency: set(Arm) for concurrency in policy.concurrencies}


def _ratio_of(bar: Bar, verdict: Verdict) -> RatioEstimate | None:
    names = (bar.numerator, bar.denominator, bar.concurrency)
    return next((r for r in verdict.ratios if (r.numerator, r.denominator, r.concurrency) == names), None)


def _straddles(bar: Bar, ratio: RatioEstimate) -> bool:
    return ratio.low < bar.minimum_ratio <= ratio.high


def _has_had_its_share(progress: Progress) -> bool:
    """Whether a newer version waits, and the measurement has had all rounds that it may take meanwhile."""
    return progress.newer_version is not None and progress.rounds >= SHARE * progress.policy.min_rounds


def _undecided_forecasts(progress: Progress) -> tuple[Forecast, ...] | None:
    """Forecasts of the bars that are measured further. None when a bar has no ratio yet."""
    found = []
    for bar in bars(progress.policy):
        ratio, early = _ratio_of(bar, progress.verdict), _ratio_of(bar, progress.early)
        if ratio is None or early is None:
            return None
        if _straddles(bar, early):
            found.append(Forecast.of(bar, ratio))
    return tuple(found)


def _chance_of_a_pass(undecided: Sequence[Forecast], progress: Progress) -> float:
    """An upper bound of the probability that every bar is cleared: that of the bar with the worst outlook."""
    return min(forecast.chance(progress.rounds_allowed) for forecast in undecided)
