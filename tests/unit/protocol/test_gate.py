"""The gate's verdict: which samples let a candidate pass, and which never do (promise 1, "Earned")."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_protocol.evidence_records import AnswerEquality, Arm, Sample, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy, judge, paired_ratio
from aurora_protocol.gate.throughput_ratios import Confidence
from aurora_protocol.gate.verdict import Bar, bars
from tests.example_count import example_count

POLICY = GatePolicy(concurrencies=(1, 4), min_improvement=0.05, tolerance=0.05, min_rounds=5)
SAME = (AnswerEquality(arm=Arm.CANDIDATE, prompts=8, identical=8, near_ties=0, different=0),)
ARMS = (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE)


def measured(
    speeds: dict[Arm, float],
    *,
    rounds: int = 6,
    noise: float = 0.02,
    seed: int = 0,
    concurrencies: Sequence[int] = (1, 4),
) -> list[Sample]:
    """Samples with tokens per second ``speeds`` and log-normal noise."""
    rng = random.Random(seed)  # noqa: S311 - noise, no secret
    return [
        Sample(
            arm=arm,
            concurrency=concurrency,
            round=number,
            requests=4,
            tokens=1000,
            seconds=1000 / (speed * math.exp(rng.gauss(0, noise))),
        )
        for number in range(rounds)
        for concurrency in concurrencies
        for arm, speed in speeds.items()
    ]


def scaled(samples: Sequence[Sample], arm: Arm, factor: float) -> list[Sample]:
    return [s.model_copy(update={"seconds": s.seconds / factor}) if s.arm is arm else s for s in samples]


def kind(
    samples: Sequence[Sample], equality: Sequence[AnswerEquality] = SAME, policy: GatePolicy = POLICY
) -> VerdictKind:
    return judge(samples, equality, policy).kind


FAST = {Arm.OFF: 20.0, Arm.ACTIVE: 18.0, Arm.CANDIDATE: 30.0}

noisy = st.builds(
    lambda candidate, noise, seed, rounds: measured(
        {Arm.OFF: 20.0, Arm.ACTIVE: 20.0, Arm.CANDIDATE: candidate}, noise=noise, seed=seed, rounds=rounds
    ),
    candidate=st.floats(5, 80),
    noise=st.floats(0, 0.5),
    seed=st.integers(0, 1000),
    rounds=st.integers(1, 12),
)


def test_the_bars_are_the_improvement_no_speculation_and_the_tolerances() -> None:
    policy = GatePolicy(concurrencies=(4, 1, 16), min_improvement=0.25, tolerance=0.5, min_rounds=5)
    assert bars(policy) == (
        Bar(Arm.CANDIDATE, Arm.ACTIVE, 4, 1.25),
        Bar(Arm.CANDIDATE, Arm.OFF, 4, 1.0),
        Bar(Arm.CANDIDATE, Arm.ACTIVE, 1, 0.5),
        Bar(Arm.CANDIDATE, Arm.OFF, 1, 0.98),
        Bar(Arm.CANDIDATE, Arm.ACTIVE, 16, 0.5),
        Bar(Arm.CANDIDATE, Arm.OFF, 16, 0.98),
    )


def test_a_clearly_faster_candidate_passes() -> None:
    verdict = judge(measured(FAST), SAME, POLICY)
    assert verdict.kind is VerdictKind.PASS
    assert {(r.numerator, r.denominator) for r in verdict.ratios} >= {
        (Arm.CANDIDATE, Arm.ACTIVE),
        (Arm.ACTIVE, Arm.OFF),
    }


def test_faster_than_active_but_slower_than_off_is_rejected() -> None:
    assert kind(measured({Arm.OFF: 40.0, Arm.ACTIVE: 18.0, Arm.CANDIDATE: 30.0})) is VerdictKind.REJECT


def test_a_loss_at_another_concurrency_is_rejected() -> None:
    samples = [s for s in measured(FAST) if s.concurrency == 1]
    samples += measured({**FAST, Arm.CANDIDATE: 15.0}, concurrencies=(4,))
    assert kind(samples) is VerdictKind.REJECT


def test_a_candidate_slower_than_no_speculation_at_any_concurrency_is_rejected_whatever_the_tolerance() -> None:
    """The active draft is as slow there, so no tolerance against the active draft would see it."""
    samples = measured(FAST) + measured({Arm.OFF: 20.0, Arm.ACTIVE: 19.0, Arm.CANDIDATE: 19.0}, concurrencies=(16,))
    policy = dataclasses.replace(POLICY, concurrencies=(1, 4, 16), tolerance=0.9)
    verdict = judge(samples, SAME, policy)
    assert verdict.kind is VerdictKind.REJECT
    (reason,) = (r for r in verdict.reasons if "candidate/off at concurrency 16" in r)
    assert reason.endswith("< 0.980")


def test_a_candidate_as_fast_as_no_speculation_under_load_passes() -> None:
    """There the engine turns speculation off, and the true ratio is 1."""
    even = measured({Arm.OFF: 20.0, Arm.ACTIVE: 20.0, Arm.CANDIDATE: 20.0}, rounds=8, noise=0.01, concurrencies=(16,))
    samples = measured(FAST, rounds=8) + even
    policy = dataclasses.replace(POLICY, concurrencies=(1, 4, 16))
    assert kind(samples, policy=policy) is VerdictKind.PASS


def test_the_tolerance_holds_at_the_other_concurrencies() -> None:
    samples = measured(FAST) + measured({Arm.OFF: 10.0, Arm.ACTIVE: 18.0, Arm.CANDIDATE: 15.0}, concurrencies=(16,))
    strict = dataclasses.replace(POLICY, concurrencies=(1, 4, 16))
    assert kind(samples, policy=strict) is VerdictKind.REJECT
    assert kind(samples, policy=dataclasses.replace(strict, tolerance=0.3)) is VerdictKind.PASS


def test_a_straddling_interval_is_inconclusive() -> None:
    assert kind(measured({**FAST, Arm.ACTIVE: 29.0}, noise=0.2)) is VerdictKind.INCONCLUSIVE


@pytest.mark.parametrize("arm", ARMS)
def test_a_missing_arm_is_inconclusive(arm: Arm) -> None:
    assert kind([s for s in measured(FAST) if s.arm is not arm]) is VerdictKind.INCONCLUSIVE


@pytest.mark.parametrize("candidate", [1.0, 30.0, 500.0])
def test_too_few_rounds_never_decide(candidate: float) -> None:
    samples = measured({**FAST, Arm.CANDIDATE: candidate}, rounds=POLICY.min_rounds - 1, noise=0.0)
    assert kind(samples) is VerdictKind.INCONCLUSIVE


def test_uncompared_answers_are_inconclusive() -> None:
    no_prompts = AnswerEquality(arm=Arm.CANDIDATE, prompts=0, identical=0, near_ties=0, different=0)
    other_arm = AnswerEquality(arm=Arm.ACTIVE, prompts=8, identical=8, near_ties=0, different=0)
    for equality in ((), (no_prompts,), (other_arm,)):
        assert kind(measured(FAST), equality) is VerdictKind.INCONCLUSIVE


def test_different_answers_are_rejected_and_near_ties_are_not() -> None:
    tie = AnswerEquality(arm=Arm.CANDIDATE, prompts=8, identical=6, near_ties=2, different=0)
    wrong = tie.model_copy(update={"near_ties": 1, "different": 1})
    assert kind(measured(FAST), (tie,)) is VerdictKind.PASS
    assert kind(measured(FAST), (wrong,)) is VerdictKind.REJECT


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (Arm.CANDIDATE, VerdictKind.REJECT),
        (Arm.ACTIVE, VerdictKind.INCONCLUSIVE),
        (Arm.OFF, VerdictKind.INCONCLUSIVE),
        (Arm.NGRAM, VerdictKind.PASS),
    ],
)
def test_failed_requests_never_flatter_a_candidate(arm: Arm, expected: VerdictKind) -> None:
    samples = measured({**FAST, Arm.NGRAM: 50.0})
    at = next(i for i, s in enumerate(samples) if s.arm is arm)
    samples[at] = samples[at].model_copy(update={"failures": 1})
    assert kind(samples) is expected


@given(noisy, st.floats(1.0, 20.0))
@settings(deadline=None, max_examples=example_count(40))
def test_a_faster_candidate_never_fares_worse(samples: list[Sample], factor: float) -> None:
    order = [VerdictKind.REJECT, VerdictKind.INCONCLUSIVE, VerdictKind.PASS]
    assert order.index(kind(scaled(samples, Arm.CANDIDATE, factor))) >= order.index(kind(samples))


@given(st.floats(0, 0.5), st.integers(0, 1000), st.integers(5, 12))
@settings(deadline=None, max_examples=example_count(40))
def test_equal_arms_never_pass(noise: float, seed: int, rounds: int) -> None:
    one = measured({Arm.ACTIVE: 20.0}, noise=noise, seed=seed, rounds=rounds)
    samples = [s.model_copy(update={"arm": arm}) for s in one for arm in ARMS]
    assert kind(samples) is not VerdictKind.PASS


@given(noisy)
@settings(deadline=None, max_examples=example_count(40))
def test_intervals_contain_their_estimate_and_verdicts_are_reproducible(samples: list[Sample]) -> None:
    verdict = judge(samples, SAME, POLICY)
    assert verdict == judge(list(reversed(samples)), SAME, POLICY)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
    for ratio in verdict.ratios:
        assert ratio.low <= ratio.estimate * (1 + 1e-9)
        assert ratio.estimate <= ratio.high * (1 + 1e-9)


@given(noisy)
@settings(deadline=None, max_examples=example_count(20))
def test_a_verdict_that_is_final_early_is_final_with_the_same_samples_later(samples: list[Sample]) -> None:
    early = judge(samples, SAME, POLICY, confidence=Confidence.EARLY)
    if early.kind is not VerdictKind.INCONCLUSIVE:
        assert judge(samples, SAME, POLICY).kind is early.kind
    for wide, narrow in zip(early.ratios, judge(samples, SAME, POLICY).ratios, strict=True):
        assert wide.low <= narrow.low
        assert narrow.high <= wide.high


@given(noisy, st.floats(0.05, 0.99), st.floats(0, 0.95))
@settings(deadline=None, max_examples=example_count(40))
def test_no_tolerance_lets_a_draft_pass_that_is_slower_than_no_speculation(
    samples: list[Sample], slowdown: float, tolerance: float
) -> None:
    """Off is at least 3 % faster than the candidate in each round at concurrency 4."""
    at_four = [s for s in samples if s.concurrency == 4 and s.arm is Arm.CANDIDATE]
    off = [s.model_copy(update={"arm": Arm.OFF, "seconds": s.seconds * min(slowdown, 0.97)}) for s in at_four]
    rest = [s for s in samples if not (s.concurrency == 4 and s.arm is Arm.OFF)]
    policy = dataclasses.replace(POLICY, tolerance=tolerance, min_rounds=1)
    assert kind([*rest, *off], policy=policy) is not VerdictKind.PASS


@given(noisy)
@settings(deadline=None, max_examples=example_count(20))
def test_swapping_arms_inverts_the_ratio(samples: list[Sample]) -> None:
    ratio = paired_ratio(samples, Arm.CANDIDATE, Arm.ACTIVE, 1)
    inverse = paired_ratio(samples, Arm.ACTIVE, Arm.CANDIDATE, 1)
    assert ratio is not None
    assert inverse is not None
    assert ratio.estimate * inverse.estimate == pytest.approx(1.0)


def test_intervals_cover_as_often_as_they_claim() -> None:
    """A candidate exactly on the bar passes in at most about 2.5 % of measurements (a bootstrap: 6.5 %)."""
    rng = random.Random(7)  # noqa: S311 - noise, no secret
    passed, trials = 0, 300
    for _ in range(trials):
        samples = measured(
            {Arm.ACTIVE: 20.0, Arm.CANDIDATE: 20.0},
            rounds=5,
            noise=0.15,
            seed=rng.randrange(1 << 30),
            concurrencies=(1,),
        )
        ratio = paired_ratio(samples, Arm.CANDIDATE, Arm.ACTIVE, 1)
        assert ratio is not None
        passed += ratio.low >= 1.0
    assert passed / trials <= 0.045
