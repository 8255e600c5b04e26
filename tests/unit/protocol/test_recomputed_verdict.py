"""Stored evidence is judged again from its samples, and never passes because it says so (promise 1, "Earned")."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Arm, Evidence, Sample, VerdictKind
from aurora_protocol.gate import GatePolicy, judge
from aurora_protocol.gate.verdict import least_policy, recomputed
from tests.example_count import example_count
from tests.unit.operator.worlds import evidence, samples

POLICY = GatePolicy.of(ValidationSpec())
SLOW = {Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 99}


def passes(found: Evidence, policy: GatePolicy = POLICY) -> bool:
    return recomputed(found, policy).verdict.kind is VerdictKind.PASS


def test_evidence_whose_samples_clear_the_bars_passes_with_the_same_reasons_as_the_validator_gives() -> None:
    found = recomputed(Evidence.from_json(evidence(1).to_json()), POLICY).verdict
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
        evidence(1, samples=tuple(one.model_copy(update={"failures": 1}) for one in samples())),
    ],
    ids=[
        "no samples",
        "too few rounds",
        "one round nine times",
        "a concurrency is missing",
        "slower than off",
        "no answers compared",
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
        assert recomputed(stated, POLICY) is stated


def test_a_version_that_passed_with_other_settings_clears_the_bars_that_no_setting_lowers() -> None:
    taken, policy = samples(rounds=3, concurrencies=(8, 16)), replace(POLICY, concurrencies=(8, 16), min_rounds=3)
    former = evidence(1, samples=taken).model_copy(update={"verdict": judge(taken, evidence(1).equality, policy)})
    assert not passes(former)
    assert least_policy(former).primary == 8
    assert recomputed(former, least_policy(former)).verdict.kind is VerdictKind.PASS
    for forged in (evidence(1, samples=()), evidence(1, samples=samples(speeds=SLOW))):
        assert recomputed(forged, least_policy(forged)).verdict.kind is not VerdictKind.PASS


@pytest.mark.parametrize(("figure", "value"), [("seconds", math.inf), ("seconds", 5e-324), ("tokens", 10**400)])
def test_samples_with_impossible_figures_are_no_record(figure: str, value: float) -> None:
    first, *others = samples()
    impossible = evidence(1, samples=(first.model_copy(update={figure: value}), *others)).to_json()
    with pytest.raises(InvalidRecord):
        Evidence.from_json(impossible)


anything = st.builds(
    Sample,
    arm=st.sampled_from(Arm),
    concurrency=st.sampled_from((1, 4)) | st.integers(1, 10**30),
    round=st.integers(0, 10**30),
    requests=st.integers(1, 10**30),
    tokens=st.integers(0, 10**12),
    seconds=st.floats(min_value=1e-6, max_value=1e7),
    failures=st.integers(0, 1) | st.integers(0, 10**30),
)


@settings(max_examples=example_count(60), deadline=None)
@given(
    found=st.lists(anything, max_size=12),
    stated=st.sampled_from(VerdictKind),
    real=st.booleans(),
)
def test_every_record_gets_a_verdict_and_passes_only_where_its_samples_do(
    found: list[Sample], stated: VerdictKind, real: bool
) -> None:
    taken = (*samples(), *found) if real else tuple(found)
    record = evidence(1, stated, samples=taken)
    for policy in (POLICY, least_policy(record)):
        if recomputed(record, policy).verdict.kind is VerdictKind.PASS:
            assert stated is VerdictKind.PASS
            assert judge(taken, record.equality, policy).kind is VerdictKind.PASS
