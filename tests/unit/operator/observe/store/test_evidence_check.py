"""Which evidence the operator examines, that what it did not examine never passes, and how much of it is kept."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.store.evidence_check import MAX_REASONS, Examination, Examined
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.gate import GatePolicy
from tests.unit.operator.worlds import evidence, observed, samples, status, store

POLICY = GatePolicy.of(ValidationSpec())
UNEXAMINED = Examination(POLICY, examines=False)
LONG = "a\n" * 500_000
versions = st.integers(0, 4)


@given(versions, st.none() | versions, st.none() | versions)
def test_evidence_is_examined_where_a_promotion_or_a_pin_depends_on_it(
    version: int, active: int | None, pin: int | None
) -> None:
    found = Examination.of(version, POLICY, active=active, pin=pin)
    assert found.pinned is (version == pin)
    assert found.examines is (version == pin or active is None or version > active)


def test_unexamined_evidence_does_not_pass_and_keeps_the_ratios_for_the_status() -> None:
    stated = evidence(1)
    found = UNEXAMINED.verdict_of(stated).verdict
    assert (found.kind, found.ratios) == (VerdictKind.INCONCLUSIVE, stated.verdict.ratios)
    assert UNEXAMINED.verdict_of(evidence(1, VerdictKind.REJECT)).verdict.kind is VerdictKind.REJECT


def test_a_pinned_version_may_have_passed_with_other_bars_and_never_with_no_samples() -> None:
    pinned = Examination.of(1, replace(POLICY, min_improvement=9.0), active=0, pin=1)
    former = store(0, 1, evidence=(pinned.verdict_of(evidence(1)),))
    assert former.may_be_pinned(1)
    assert not store(0, 1, evidence=(pinned.verdict_of(evidence(1, samples=())),)).may_be_pinned(1)


def test_the_same_evidence_passes_with_few_rounds_only_where_the_spec_asks_for_few() -> None:
    short = evidence(1, samples=samples(rounds=4))
    kinds = [
        Examination.of(1, replace(POLICY, min_rounds=rounds), active=0, pin=None).verdict_of(short).verdict.kind
        for rounds in (4, 5)
    ]
    assert kinds == [VerdictKind.PASS, VerdictKind.INCONCLUSIVE]


def test_the_status_stays_small_whatever_evidence_says() -> None:
    base = evidence(1, VerdictKind.REJECT)
    environment = base.environment.model_copy(update={"hardware": LONG, "dtype": LONG})
    verdict = base.verdict.model_copy(update={"reasons": (LONG, *("no",) * 5000)})
    record = base.model_copy(update={"environment": environment, "verdict": verdict, "end_message": LONG})
    found = Examined.of(record, UNEXAMINED).evidence
    assert (len(found.environment.hardware), len(found.environment.dtype), len(found.end_message)) == (300, 300, 1000)
    assert (len(found.verdict.reasons), len(found.verdict.reasons[0])) == (MAX_REASONS, 300)
    shown = status(observed(store=store(0, 1, evidence=(found,))))
    assert len(shown.model_dump_json()) < 10_000


def test_usual_evidence_is_kept_as_it_is() -> None:
    base = evidence(1, VerdictKind.REJECT)
    found = Examined.of(base, UNEXAMINED).evidence
    assert (found.environment, found.verdict.reasons) == (base.environment, base.verdict.reasons)
