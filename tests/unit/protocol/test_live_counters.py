"""Sums and differences of live counters, which readers take over pods and over time."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_COUNT, AgentState, DraftCounters, LiveCounters
from aurora_protocol.errors import InvalidRecord

counts = st.integers(0, MAX_COUNT)
positions = st.lists(counts, max_size=5).map(tuple)
drafts = st.builds(DraftCounters, requests=counts, proposed_at=positions, accepted_at=positions)
readings = st.builds(
    LiveCounters, requests=counts, answer_tokens=counts, lookup_accepted=counts, draft=st.none() | drafts
)


@given(readings, readings)
def test_a_later_reading_less_an_earlier_one_is_the_traffic_between(earlier: LiveCounters, more: LiveCounters) -> None:
    found = earlier.plus(more).since(earlier)
    assert found.model_copy(update={"draft": None}) == more.model_copy(update={"draft": None})
    if earlier.draft is None or more.draft is None:
        assert found.draft is None, "what one reading does not count is not known of the difference"
        return
    assert found.draft is not None
    assert found.draft.requests == more.draft.requests
    assert trimmed(found.draft.proposed_at) == trimmed(more.draft.proposed_at)
    assert trimmed(found.draft.accepted_at) == trimmed(more.draft.accepted_at)


def trimmed(by_position: tuple[int, ...]) -> tuple[int, ...]:
    """Without zeros at the end."""
    last = max((at for at, count in enumerate(by_position) if count), default=-1)
    return by_position[: last + 1]


@given(readings, readings)
def test_counters_that_fell_count_as_nothing(one: LiveCounters, other: LiveCounters) -> None:
    found = one.since(other)
    assert min(found.requests, found.answer_tokens, found.lookup_accepted) >= 0
    assert found.draft is None or min((0, *found.draft.proposed_at, *found.draft.accepted_at)) >= 0


def test_an_older_agent_that_counts_no_chains_is_read() -> None:
    old = AgentState.from_json(
        b'{"pod": "p", "boot": "b", "engineReady": true, "live": {"requests": 3, "proposed": 9}}'
    )
    assert (old.live.requests, old.live.proposed, old.live.draft, old.speedup_estimate) == (3, 9, None, None)


@pytest.mark.parametrize(
    "live",
    [
        {"draft": {"requests": MAX_COUNT + 1}},
        {"draft": {"proposedAt": [MAX_COUNT + 1]}},
        {"draft": {"acceptedAt": [-1]}},
        {"draft": {"proposedAt": [1] * 65}},
        {"lookupAccepted": -1},
    ],
)
def test_counters_of_a_faulty_pod_are_refused(live: dict[str, object]) -> None:
    state = AgentState(pod="p", boot="b", engine_ready=True).model_dump(mode="json", by_alias=True) | {"live": live}
    with pytest.raises(InvalidRecord, match="live"):
        AgentState.from_json(json.dumps(state))
