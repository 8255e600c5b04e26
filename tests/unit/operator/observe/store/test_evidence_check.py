"""What stored evidence shows to the operator, and how much of it is kept."""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.store.signed_records import MAX_REASONS, judged
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.gate import GatePolicy
from tests.unit.operator.worlds import evidence, observed, samples, status, store

POLICY = GatePolicy.of(ValidationSpec())
LONG = "a\n" * 500_000


def test_a_pinned_version_may_have_passed_with_other_bars_and_never_with_no_samples() -> None:
    higher = replace(POLICY, min_improvement=9.0)
    assert store(0, 1, evidence=(judged(evidence(1), higher, pinned=True),)).may_be_pinned(1)
    assert not store(0, 1, evidence=(judged(evidence(1), higher, pinned=False),)).may_be_pinned(1)
    assert not store(0, 1, evidence=(judged(evidence(1, samples=()), POLICY, pinned=True),)).may_be_pinned(1)


def test_the_same_evidence_passes_with_few_rounds_only_where_the_spec_asks_for_few() -> None:
    short = evidence(1, samples=samples(rounds=4))
    kinds = [judged(short, replace(POLICY, min_rounds=rounds), pinned=False).verdict.kind for rounds in (4, 5)]
    assert kinds == [VerdictKind.PASS, VerdictKind.INCONCLUSIVE]


def test_the_status_stays_small_whatever_evidence_says() -> None:
    base = evidence(1, VerdictKind.REJECT)
    verdict = base.verdict.model_copy(update={"reasons": (LONG, *("no",) * 5000)})
    found = judged(base.model_copy(update={"verdict": verdict}), POLICY, pinned=False)
    assert (len(found.verdict.reasons), len(found.verdict.reasons[0])) == (MAX_REASONS, 300)
    shown = status(observed(store=store(0, 1, evidence=(found,))))
    assert len(shown.model_dump_json()) < 10_000
