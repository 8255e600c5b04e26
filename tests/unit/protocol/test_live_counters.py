"""Sums and differences of live counters, which readers take over pods and over time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_SQUARE, AgentState, LiveCounters
from aurora_protocol.errors import InvalidRecord

readings = st.builds(LiveCounters, **{name: st.integers(0, 2**40) for name in LiveCounters.model_fields})


@given(readings, readings)
def test_a_later_reading_less_an_earlier_one_is_the_traffic_between(earlier: LiveCounters, more: LiveCounters) -> None:
    assert earlier.plus(more).since(earlier) == more


@given(readings, readings)
def test_counters_that_fell_count_as_nothing(one: LiveCounters, other: LiveCounters) -> None:
    assert min(one.since(other).model_dump().values()) >= 0


def test_an_older_agent_that_counts_otherwise_has_counted_nothing() -> None:
    """Without squares a difference would look certain."""
    old = {"requests": 3, "answerTokens": 9, "verifyRounds": 5, "proposed": 9}
    state = json.dumps({"pod": "p", "boot": "b", "engineReady": True, "live": old})
    assert AgentState.from_json(state.encode()).live == LiveCounters(requests=3)


@pytest.mark.parametrize("live", [{"rounds": -1}, {"tokensSquared": MAX_SQUARE + 1}])
def test_counters_of_a_faulty_pod_are_refused(live: dict[str, object]) -> None:
    state = AgentState(pod="p", boot="b", engine_ready=True).model_dump(mode="json", by_alias=True) | {"live": live}
    with pytest.raises(InvalidRecord, match="a counter is below 0 or above"):
        AgentState.from_json(json.dumps(state))
