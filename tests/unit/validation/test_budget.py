"""How long a measurement goes on: the forecast, and the rule that ends an undecided one."""

from __future__ import annotations

import math
import random
import statistics
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.evidence_records import Arm, MeasurementEnd, RatioEstimate, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.throughput_ratios import Confidence, t_quantile
from aurora_protocol.gate.verdict import Bar, bars
from aurora_runtime.validation.rounds import SHARE, chance, ending, is_look, open_arms

POLICY = GatePolicy(concurrencies=(1, 4), min_improvement=0.05, tolerance=0.05, min_rounds=5)


class Look(NamedTuple):
    """The arguments of :func:`ending`."""

    verdict: Verdict
    early: Verdict
    rounds: int
    rounds_allowed: int
    newer_waits: bool

    def ending(self) -> MeasurementEnd | None:
        return ending(POLICY, **self._asdict())


def ratio(bar: Bar, lead: float, half_width: float, rounds: int) -> RatioEstimate:
    """A ratio whose estimate is ``lead`` above the bar. Both figures are logarithms."""
    middle = math.log(bar.minimum_ratio) + lead
    return RatioEstimate(
        numerator=bar.numerator,
        denominator=bar.denominator,
        concurrency=bar.concurrency,
        rounds=rounds,
        estimate=math.exp(middle),
        low=math.exp(middle - half_width),
        high=math.exp(middle + half_width),
    )


def progress(
    leads: dict[tuple[Arm, int], float],
    *,
    rounds: int = 6,
    allowed: int = 96,
    newer: bool = False,
    deviation: float = 0.03,
) -> Look:
    """A measurement whose ratios lead their bars by ``leads``, by default by a clear 0.5."""
    verdicts = {}
    for confidence in Confidence:
        half_width = t_quantile(rounds - 1, confidence) * deviation / math.sqrt(rounds)
        ratios, kinds = [], set()
        for bar in bars(POLICY):
            lead = leads.get((bar.denominator, bar.concurrency), 0.5)
            ratios.append(ratio(bar, lead, half_width, rounds))
            clear = VerdictKind.PASS if lead >= half_width else VerdictKind.REJECT
            kinds.add(VerdictKind.INCONCLUSIVE if -half_width <= lead < half_width else clear)
        worst = (VerdictKind.REJECT, VerdictKind.INCONCLUSIVE, VerdictKind.PASS)
        kind = next(k for k in worst if k in kinds)
        verdicts[confidence] = Verdict(kind=kind, reasons=(), ratios=tuple(ratios))
    return Look(verdicts[Confidence.FINAL], verdicts[Confidence.EARLY], rounds, allowed, newer)


NEAR = {(Arm.OFF, 4): 0.004}
"""A ratio that the noise of 3 % hides for hundreds of rounds."""


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (progress({}), MeasurementEnd.DECIDED),
        (progress({(Arm.ACTIVE, 1): -0.5}), MeasurementEnd.DECIDED),
        (progress({(Arm.OFF, 4): 0.02}), None),
        (progress({(Arm.OFF, 4): 0.02}, rounds=96), MeasurementEnd.DECIDED),
        (progress(NEAR, rounds=6), None),
        (progress(NEAR, rounds=90), MeasurementEnd.HOPELESS),
        (progress(NEAR, rounds=96), MeasurementEnd.BUDGET_USED),
        (progress({(Arm.ACTIVE, 1): -0.01}, rounds=12), MeasurementEnd.HOPELESS),
        (progress(NEAR, rounds=24, newer=True), None),
        (progress(NEAR, rounds=25, newer=True), MeasurementEnd.GAVE_WAY),
        (progress(NEAR, rounds=4, newer=True), None),
        (progress({(Arm.OFF, 4): 0.03}, rounds=5, newer=True), None),
        (progress({}, newer=True), MeasurementEnd.DECIDED),
        (progress({(Arm.ACTIVE, 1): 0.01}, rounds=25, newer=True), MeasurementEnd.GAVE_WAY),
        (progress({(Arm.ACTIVE, 1): 0.014}, rounds=25, newer=True), MeasurementEnd.DECIDED),
        (progress({(Arm.ACTIVE, 1): 0.014}, rounds=25), None),
        (progress({(Arm.ACTIVE, 1): -0.014}, rounds=25, newer=True), MeasurementEnd.DECIDED),
        (progress({(Arm.ACTIVE, 1): 0.03}, rounds=8, newer=True), None),
    ],
)
def test_a_measurement_ends_when_it_is_decided_hopeless_used_up_or_gives_way(
    state: Look, expected: MeasurementEnd | None
) -> None:
    assert state.ending() is expected


@given(
    st.dictionaries(
        st.sampled_from([(bar.denominator, bar.concurrency) for bar in bars(POLICY)]), st.floats(-0.2, 0.2)
    ),
    st.integers(2, 96),
    st.booleans(),
    st.floats(0, 0.3),
)
def test_the_promises_of_the_budget_hold(
    leads: dict[tuple[Arm, int], float], rounds: int, newer: bool, deviation: float
) -> None:
    state = progress(leads, rounds=rounds, newer=newer, deviation=deviation)
    found = state.ending()
    has_had_its_share = newer and rounds >= SHARE * POLICY.min_rounds
    decides = state.verdict if rounds == 96 or has_had_its_share else state.early
    decided = found is MeasurementEnd.DECIDED
    assert decided == (decides.kind is not VerdictKind.INCONCLUSIVE)
    if found is not None:
        assert decided == (state.verdict.kind is not VerdictKind.INCONCLUSIVE), "what is stored and why agree"
    if rounds == 96:
        assert found is not None, "no measurement goes on for ever"
    if found is MeasurementEnd.GAVE_WAY:
        assert has_had_its_share
    if has_had_its_share:
        assert found is not None, "while a newer version waits, an undecided one takes no more than its share"
    assert set(open_arms(POLICY, state.early)) <= set(POLICY.concurrencies)
    assert all(Arm.CANDIDATE in arms for arms in open_arms(POLICY, state.early).values())


def test_the_next_rounds_measure_the_arms_of_open_bars() -> None:
    both, every = {Arm.CANDIDATE, Arm.NGRAM}, set(Arm)
    assert open_arms(POLICY, progress(NEAR).early) == {4: both | {Arm.OFF}}
    assert open_arms(POLICY, progress({(Arm.ACTIVE, 1): 0.0}).early) == {1: both | {Arm.ACTIVE}}
    both_open = {1: both | {Arm.ACTIVE}, 4: both | {Arm.OFF}}
    assert open_arms(POLICY, progress({(Arm.ACTIVE, 1): 0.0} | NEAR).early) == both_open
    assert open_arms(POLICY, progress(NEAR, rounds=4).early) == {1: every, 4: every}, "too few rounds decide nothing"
    nothing = Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=(), ratios=())
    assert open_arms(POLICY, nothing) == {1: every, 4: every}


def test_looks_are_at_every_round_before_the_fewest_and_then_a_quarter_apart() -> None:
    looks = [rounds for rounds in range(1, 97) if is_look(POLICY, rounds)]
    assert looks == [1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 38, 48, 60, 75, 94]


@given(st.floats(-0.5, 0.5), st.floats(0, 0.3), st.integers(2, 40), st.integers(0, 20), st.floats(0, 0.2))
def test_chances_are_probabilities_and_a_larger_lead_never_makes_a_pass_less_likely(
    lead: float, deviation: float, rounds: int, further: int, more: float
) -> None:
    found, better = (chance(one, deviation, rounds, rounds + further) for one in (lead, lead + more))
    assert 0 <= found <= 1
    assert better >= found - 1e-9


def test_the_forecast_comes_true_as_often_as_it_says() -> None:
    """Measurements with any true ratio and six rounds done of 24, whose bar is not decided yet."""
    rng = random.Random(5)  # noqa: S311 - noise, no secret
    expected, came_true, trials, noise = 0.0, 0, 0, 0.05
    while trials < 2000:
        truth = rng.uniform(-0.15, 0.15)
        rounds = [rng.gauss(truth, noise) for _ in range(24)]
        lead, deviation = statistics.fmean(rounds[:6]), statistics.stdev(rounds[:6])
        if abs(lead) > t_quantile(5) * deviation / math.sqrt(6):
            continue
        trials += 1
        expected += chance(lead, deviation, 6, 24)
        came_true += statistics.fmean(rounds) > t_quantile(23) * statistics.stdev(rounds) / math.sqrt(24)
    assert came_true / trials == pytest.approx(expected / trials, abs=0.05)
