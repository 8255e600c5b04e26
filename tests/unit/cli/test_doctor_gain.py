"""The doctor notes that speculation gains little, where the engine chooses the size of its rounds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_cli.doctor.diagnosis import diagnose, is_well
from aurora_cli.doctor.serving_rules import LITTLE_GAIN, SETTLED
from aurora_operator.plan.formatting import speedup_text
from tests.unit.cli.snapshots import HEALTHY, found, snapshot
from tests.unit.docs.markdown import page

TITLE = "speculation gains little here"


@pytest.mark.parametrize(
    ("draft", "estimated", "expected"),
    [
        ({}, "~1.0x", True),
        ({"shape": "Adaptive"}, "~0.9x", True),
        ({}, "~1.1x", True),
        ({}, "~1.2x", False),
        ({}, "~1.8x", False),
        ({}, None, False),
        ({}, "soon", False),
        ({"shape": "Fixed"}, "~1.0x", False),
        ({"branching": 4, "draftTokens": 16}, "~1.0x", False),
    ],
)
def test_a_small_estimate_of_an_adaptive_engine_is_noted(
    draft: dict[str, Any], estimated: str | None, expected: bool
) -> None:
    one = snapshot(HEALTHY.model_copy(update={"estimated_speedup": estimated}), draft=draft)
    assert found(one) == [TITLE] * expected
    assert is_well(diagnose(one))


@pytest.mark.parametrize(("age", "expected"), [(SETTLED, True), (SETTLED - timedelta(seconds=1), False)])
def test_a_new_draft_gets_time_to_learn(age: timedelta, expected: bool) -> None:
    one = snapshot(HEALTHY.model_copy(update={"estimated_speedup": "~1.0x"}))
    assert one.speculator.created is not None
    assert found(replace(one, now=one.speculator.created + age)) == [TITLE] * expected


def test_the_note_says_with_what_the_estimate_compares_and_what_was_measured() -> None:
    (finding,) = diagnose(snapshot(HEALTHY.model_copy(update={"estimated_speedup": "~1.0x"})))
    assert "~1.0x" in finding.evidence
    assert "compares with the pods' own rounds without proposals" in finding.advice
    assert "4 to 13 % slower than" in finding.advice


@pytest.mark.parametrize(("measured", "expected"), [(1.04, True), (1.13, True), (1.16, False)])
def test_a_gain_within_the_measured_costs_is_noted_although_the_status_rounds_it(
    measured: float, expected: bool
) -> None:
    one = snapshot(HEALTHY.model_copy(update={"estimated_speedup": speedup_text([(1000, measured)])}))
    assert found(one) == [TITLE] * expected


def test_the_documentation_names_the_same_bound() -> None:
    assert f"At `~{LITTLE_GAIN}x` or below" in page("docs/how-to/troubleshooting.md").path.read_text()
