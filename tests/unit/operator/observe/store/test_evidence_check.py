"""Which evidence the operator examines, and that evidence which it did not examine never passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.store.evidence_check import NO_EXAMINATION, Demand, Examination, Examined
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.gate import GatePolicy, throughput_ratios
from tests.unit.operator.worlds import evidence, samples, store

POLICY = GatePolicy.of(ValidationSpec())
versions = st.integers(0, 4)


@given(versions, st.none() | versions, st.none() | versions)
def test_evidence_is_examined_where_a_promotion_or_a_pin_depends_on_it(
    version: int, active: int | None, pin: int | None
) -> None:
    found = Examination.of(version, POLICY, active=active, pin=pin)
    if version == pin:
        assert found.demand is Demand.LEAST
    elif active is None or version > active:
        assert (found.demand, found.policy) == (Demand.SPEC, POLICY)
    else:
        assert found == NO_EXAMINATION


def test_unexamined_evidence_does_not_pass_and_keeps_the_ratios_for_the_status() -> None:
    stated = evidence(1)
    found = NO_EXAMINATION.verdict_of(stated).verdict
    assert (found.kind, found.ratios) == (VerdictKind.INCONCLUSIVE, stated.verdict.ratios)
    assert NO_EXAMINATION.verdict_of(evidence(1, VerdictKind.REJECT)).verdict.kind is VerdictKind.REJECT


def test_a_pinned_version_may_have_passed_with_other_bars_and_never_with_no_samples() -> None:
    pinned = Examination.of(1, replace(POLICY, min_improvement=9.0), active=0, pin=1)
    former = store(0, 1, evidence=(pinned.verdict_of(evidence(1)),))
    assert former.may_be_pinned(1)
    assert not store(0, 1, evidence=(pinned.verdict_of(evidence(1, samples=())),)).may_be_pinned(1)


def test_a_change_of_the_bars_asks_for_another_examination_where_a_promotion_depends_on_it() -> None:
    now, then = (Examination.of(1, policy, active=0, pin=None) for policy in (POLICY, replace(POLICY, min_rounds=9)))
    assert now.is_met_by(now)
    assert not now.is_met_by(then)
    assert not now.is_met_by(NO_EXAMINATION)
    assert NO_EXAMINATION.is_met_by(then)


def test_no_ratio_is_estimated_again_after_a_change_of_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = [Examination.of(1, replace(POLICY, min_improvement=gain), active=0, pin=None) for gain in (0.0, 9.0)]
    bars.append(Examination.of(1, POLICY, active=0, pin=1))
    first = Examined.of(evidence(1), bars[0], POLICY, None)
    monkeypatch.setattr(throughput_ratios, "mean_interval", lambda *_, **__: pytest.fail("estimated again"))
    kinds = [Examined.of(evidence(1), one, POLICY, first).evidence.verdict.kind for one in bars]
    assert kinds == [VerdictKind.PASS, VerdictKind.REJECT, VerdictKind.PASS]


def test_the_same_evidence_passes_with_few_rounds_only_where_the_spec_asks_for_few() -> None:
    short = evidence(1, samples=samples(rounds=4))
    kinds = [
        Examination.of(1, replace(POLICY, min_rounds=rounds), active=0, pin=None).verdict_of(short).verdict.kind
        for rounds in (4, 5)
    ]
    assert kinds == [VerdictKind.PASS, VerdictKind.INCONCLUSIVE]
