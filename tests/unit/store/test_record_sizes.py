"""The largest measurement that a spec allows fits into one record."""

from __future__ import annotations

from aurora_api.v1alpha1.validation import MAX_ROUNDS
from aurora_protocol.evidence_records import Arm, Sample
from aurora_store.objects import MAX_RECORD_BYTES
from tests.unit.operator.worlds import evidence

ROUNDS_TIMES_CONCURRENCIES = 8 * MAX_ROUNDS
"""A spec has at most eight concurrencies."""


def test_the_evidence_of_the_largest_measurement_fits_into_a_record() -> None:
    samples = tuple(
        Sample(
            arm=arm,
            concurrency=1024,
            round=number,
            requests=1 << 20,
            tokens=1 << 33,
            seconds=12345.678901234567,
            verify_rounds=1 << 30,
            failures=1 << 20,
        )
        for number in range(ROUNDS_TIMES_CONCURRENCIES)
        for arm in Arm
    )
    assert len(evidence(1, samples=samples).to_json()) < MAX_RECORD_BYTES
