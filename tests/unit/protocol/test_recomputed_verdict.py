"""Stored evidence is judged again from its samples, and never passes because it says so (promise 1, "Earned")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.evidence_records import AnswerEquality, Arm, BaselineSamples, Evidence, Sample, VerdictKind
from aurora_protocol.gate import GatePolicy, judge, throughput_ratios
from aurora_protocol.gate.intervals import Interval
from aurora_protocol.gate.recompute import least_policies, recomputed
from tests.example_count import example_count
from tests.unit.operator.worlds import NOW, evidence, samples

POLICY = GatePolicy.of(ValidationSpec())
SLOW = {Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 99}


def passes(found: Evidence, policy: GatePolicy = POLICY) -> bool:
    return recomputed(found, (policy,)).verdict.kind is VerdictKind.PASS


def changed(name: str, value: Any) -> Evidence:
    """Evidence that says Pass, with one sample whose figure no model refuses."""
    first, *others = samples()
    return evidence(1, samples=(first.model_copy(update={name: value}), *others))


def test_evidence_whose_samples_clear_the_bars_passes_with_the_same_reasons_as_the_validator_gives() -> None:
    found = recomputed(Evidence.from_json(evidence(1).to_json()), (POLICY,)).verdict
    assert found == judge(samples(), evidence(1).equality, POLICY)
    assert found.kind is VerdictKind.PASS


@pytest.mark.parametrize(
    "forged",
    [
        evidence(1, samples=()),
        evidence(1, samples=samples(rounds=4)),
        evidence(1, samples=samples(rounds=1) * 9),
        evidence(1, samples=samples(concurrencies=(1,))),
        evidence(1, samples=samples(speeds=SLOW)),
        evidence(1, equality=()),
        evidence(1, equality=(AnswerEquality(arm=Arm.CANDIDATE, prompts=9, identical=8, near_ties=0, different=0),)),
        evidence(1, samples=samples(rounds=700)),
        changed("seconds", math.inf),
        changed("seconds", 5e-324),
        changed("tokens", 10**400),
        changed("failures", 1).model_copy(update={"baseline": None}),
    ],
    ids=[
        "no samples",
        "too few rounds",
        "one round nine times",
        "a concurrency is missing",
        "slower than off",
        "no answers compared",
        "answers that do not add up",
        "too many samples",
        "endless",
        "no time",
        "huge",
        "failed requests",
    ],
)
def test_evidence_that_only_says_pass_does_not_pass(forged: Evidence) -> None:
    assert forged.verdict.kind is VerdictKind.PASS
    assert not passes(forged)


def test_the_bars_are_those_of_the_reader() -> None:
    demanding = GatePolicy.of(ValidationSpec(min_improvement="0.5"))
    patient = replace(POLICY, min_rounds=6)
    wide = GatePolicy.of(ValidationSpec(concurrencies=[1, 4, 16]))
    assert passes(evidence(1))
    assert not any(passes(evidence(1), policy) for policy in (demanding, patient, wide))


def test_a_verdict_that_does_not_help_is_believed() -> None:
    for kind in (VerdictKind.REJECT, VerdictKind.INCONCLUSIVE):
        stated = evidence(1, kind)
        assert recomputed(stated, (POLICY,)) is stated


def test_a_version_that_passed_with_other_settings_clears_the_bars_that_no_setting_lowers() -> None:
    former = evidence(1, samples=samples(rounds=3, concurrencies=(8, 16)))
    assert not passes(former)
    assert recomputed(former, least_policies(former)).verdict.kind is VerdictKind.PASS
    for forged in (evidence(1, samples=()), evidence(1, samples=samples(speeds=SLOW))):
        assert recomputed(forged, least_policies(forged)).verdict.kind is not VerdictKind.PASS


@pytest.fixture(name="intervals")
def _intervals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of values of each interval that is estimated. Intervals take nearly all time of a verdict."""
    sizes = list[int]()

    def interval(values: Sequence[float], *_: Any, **__: Any) -> Interval:
        sizes.append(len(values))
        return Interval(-1.0, 1.0)

    monkeypatch.setattr(throughput_ratios, "mean_interval", interval)
    return sizes


def test_each_ratio_is_estimated_once_for_all_concurrencies_that_may_be_the_primary_one(intervals: list[int]) -> None:
    forged = evidence(1, samples=samples(rounds=3, concurrencies=tuple(range(1, 9)), speeds=SLOW))
    policies = least_policies(forged)
    assert len(policies) == 8
    assert recomputed(forged, policies).verdict.kind is not VerdictKind.PASS
    assert 0 < len(intervals) <= 4 * 8


def test_no_samples_beyond_those_that_the_api_allows_are_worked_on(intervals: list[int]) -> None:
    most = tuple(one for one in samples(rounds=1000, concurrencies=(1,)))
    recomputed(evidence(1, samples=most), (POLICY,))
    assert sum(intervals) == 3 * 1000, "candidate to active, candidate to off, active to off"
    one_more = next(one for one in most if one.arm is Arm.OFF).model_copy(update={"round": 1000})
    assert not passes(evidence(1, samples=(*most, one_more)))
    assert sum(intervals) == 3 * 1000, "evidence that no validator can have written is not worked on"


anything = st.builds(
    Sample,
    arm=st.sampled_from(Arm),
    concurrency=st.sampled_from((1, 4)) | st.integers(1, 10**30),
    round=st.integers(0, 10**30),
    requests=st.integers(1, 10**30),
    tokens=st.integers(0, 10**400),
    seconds=st.floats(min_value=0, exclude_min=True, allow_infinity=True),
    failures=st.integers(0, 1) | st.integers(0, 10**30),
)


@settings(max_examples=example_count(60), deadline=None)
@given(
    found=st.lists(anything, max_size=12),
    cached=st.none() | st.lists(anything, max_size=12),
    stated=st.sampled_from(VerdictKind),
    real=st.booleans(),
)
def test_every_record_gets_a_verdict_and_passes_only_where_its_samples_do(
    found: list[Sample], cached: list[Sample] | None, stated: VerdictKind, real: bool
) -> None:
    taken = (*samples(), *found) if real else tuple(found)
    baseline = None if cached is None else BaselineSamples(key="baselines/1", samples=tuple(cached), created=NOW)
    record = evidence(1, stated, samples=taken, baseline=baseline)
    for policies in ((POLICY,), least_policies(record)):
        if recomputed(record, policies).verdict.kind is VerdictKind.PASS:
            assert stated is VerdictKind.PASS
            verdicts = [judge(taken, record.equality, policy, baseline) for policy in policies]
            assert any(verdict.kind is VerdictKind.PASS for verdict in verdicts)
