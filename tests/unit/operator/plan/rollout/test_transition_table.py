"""The table of transitions: complete, and the same in ARCHITECTURE.md."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.plan.rollout.transition import TRANSITIONS
from aurora_operator.plan.rollout.transition_table import BEGIN, DOCUMENT, END, table, with_table


def test_the_architecture_page_shows_the_table_that_runs() -> None:
    text = DOCUMENT.read_text()
    hint = "run `python -m aurora_operator.plan.rollout.transition_table`"
    assert with_table(text) == text, hint


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="rollout-transitions:begin"):
        with_table("# Architecture\n")
    assert with_table(f"a\n{BEGIN}\nold\n{END}\nb\n") == f"a\n{BEGIN}\n\n{table()}\n\n{END}\nb\n"


def test_each_phase_and_judgement_has_one_row() -> None:
    pairs = [(phase, row.judgement) for row in TRANSITIONS for phase in row.phases]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("phase", RolloutPhase)
def test_every_phase_can_be_entered_and_left(phase: RolloutPhase) -> None:
    assert any(phase in row.leads_to and row.phases != (phase,) for row in TRANSITIONS)
    assert any(row.phases == (phase,) and row.leads_to != (phase,) for row in TRANSITIONS)
