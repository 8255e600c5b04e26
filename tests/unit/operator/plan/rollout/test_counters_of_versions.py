"""Operators with other sets of counters: no window is judged that lacks a counter of this operator.

The newer operator of these tests is this one, with a higher :data:`COUNTERS`.
"""

from __future__ import annotations

from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase, SpeculatorStatus
from aurora_operator.plan.rollout import roll as module
from aurora_operator.plan.rollout.roll import COUNTERS, AnalysisState, PodWindow, Roll, read_roll
from aurora_protocol.agent_api import DraftCounters, LiveCounters

NAMES = {
    "requests", "aborted", "answerTokens", "verifyRounds", "proposed", "accepted", "lookupProposed", "lookupAccepted",
    "draft", "draft.requests", "draft.proposedAt", "draft.acceptedAt", "gapMilliseconds", "gaps", "gapSquares",
}  # fmt: skip
WINDOW = PodWindow(name="a", boot="b", version=1, live=LiveCounters(requests=5))
ROLL = Roll(phase=RolloutPhase.CANARY, version=1, engine_boots={"a": "b"}, analysis=AnalysisState(windows=[WINDOW]))


def stored(roll: Roll) -> SpeculatorStatus:
    rollout, state = roll.status_parts()
    return SpeculatorStatus(rollout=rollout, operator_state=state)


def test_a_new_counter_raises_the_number_of_the_set() -> None:
    names = {field.alias for field in LiveCounters.model_fields.values()}
    names |= {f"draft.{field.alias}" for field in DraftCounters.model_fields.values()}
    assert (COUNTERS, names) == (1, NAMES), "raise COUNTERS, and write both here"


def test_an_older_operator_goes_on_with_the_windows_of_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(module, "COUNTERS", COUNTERS + 1)
        status = stored(ROLL)
    state: dict[str, Any] = status.operator_state
    state["analysis"]["windows"][0]["live"]["newCounter"] = 7
    read = read_roll(status)
    assert not read.state_lost
    assert read.analysis == ROLL.analysis
    assert "newCounter" not in str(read.status_parts()[1])


@pytest.mark.parametrize("rewritten", [False, True])
def test_a_newer_operator_judges_no_window_of_an_older_one(monkeypatch: pytest.MonkeyPatch, *, rewritten: bool) -> None:
    older = stored(ROLL)
    monkeypatch.setattr(module, "COUNTERS", COUNTERS + 1)
    status = stored(ROLL) if rewritten else older
    if rewritten:
        assert not read_roll(status).state_lost
        with monkeypatch.context() as rollback:
            rollback.setattr(module, "COUNTERS", COUNTERS)
            status = stored(read_roll(status))
    read = read_roll(status)
    assert read.state_lost
    assert read.analysis is None


def test_a_roll_that_is_not_judged_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    older = stored(ROLL.model_copy(update={"analysis": None}))
    monkeypatch.setattr(module, "COUNTERS", COUNTERS + 1)
    read = read_roll(older)
    assert not read.state_lost
    assert read.engine_boots == ROLL.engine_boots
