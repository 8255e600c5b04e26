"""The texts and counts of records are cut to what a status holds, and no record is refused for its length."""

from __future__ import annotations

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.store.bounded_records import MAX_REASONS, bounded_trainer_status
from aurora_operator.observe.store.evidence_check import NO_EXAMINATION, Examined
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.gate import GatePolicy
from tests.unit.operator.worlds import evidence, observed, status, store, trainer_record

LONG = "a\n" * 500_000


def read(record: Evidence) -> Evidence:
    """``record`` as the operator's reader keeps it."""
    return Examined.of(record, NO_EXAMINATION, GatePolicy.of(ValidationSpec()), None).evidence


def test_a_message_of_the_trainer_is_one_short_line() -> None:
    found = bounded_trainer_status(trainer_record(message=LONG))
    assert (len(found.message), found.message[:5]) == (1000, "a a a")
    usual = trainer_record(message="the draft gained 0.03")
    assert bounded_trainer_status(usual) == usual


def test_the_status_stays_small_whatever_evidence_says() -> None:
    base = evidence(1, VerdictKind.REJECT)
    environment = base.environment.model_copy(update={"hardware": LONG, "dtype": LONG})
    verdict = base.verdict.model_copy(update={"reasons": (LONG, *("no",) * 5000)})
    found = read(base.model_copy(update={"environment": environment, "verdict": verdict, "end_message": LONG}))
    assert (len(found.environment.hardware), len(found.environment.dtype), len(found.end_message)) == (300, 300, 1000)
    assert (len(found.verdict.reasons), len(found.verdict.reasons[0])) == (MAX_REASONS, 300)
    shown = status(observed(store=store(0, 1, evidence=(found,))))
    assert len(shown.model_dump_json()) < 10_000


def test_usual_evidence_is_kept_as_it_is() -> None:
    base = evidence(1, VerdictKind.REJECT)
    found = read(base)
    assert (found.environment, found.verdict.reasons) == (base.environment, base.verdict.reasons)
