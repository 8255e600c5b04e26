"""The record of the speculation controller: what its counters add up to, and what a reader refuses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.errors import InvalidRecord
from aurora_runtime.serving.pod_records import RoundCost, SourceCounters, SpeculationState

CHAINS = st.lists(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=30)


@given(CHAINS)
def test_the_counters_by_position_add_up_to_chains_and_tokens(chains: list[tuple[int, int]]) -> None:
    counters = SourceCounters(
        proposed_at=tuple(sum(proposed > at for proposed, _ in chains) for at in range(12)),
        accepted_at=tuple(sum(accepted > at for _, accepted in chains) for at in range(12)),
    )

    assert counters.rounds == len(chains)
    assert counters.proposed == sum(proposed for proposed, _ in chains)
    assert counters.accepted == sum(accepted for _, accepted in chains)


@pytest.mark.parametrize(("proposed", "accepted"), [((3, 1), (2, 2)), ((3,), (2, 1)), ((), (1,))])
def test_a_source_that_had_more_tokens_accepted_than_proposed_is_refused(
    proposed: tuple[int, ...], accepted: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="more tokens were accepted than proposed"):
        SourceCounters(proposed_at=proposed, accepted_at=accepted)


def test_the_state_survives_its_file() -> None:
    state = SpeculationState(
        boot="b1",
        rounds_by_arm={"off": 7, "lookup-5": 2, "draft-3": 1},
        draft=SourceCounters(requests=1, proposed_at=(1, 1, 1), accepted_at=(1,)),
        costs=(RoundCost(arm="off", batch_size=4, milliseconds=12.5),),
        speedup_over_off=1.31,
        exploring_share=0.01,
        written_at=datetime.now(UTC),
    )

    assert SpeculationState.from_json(state.to_json()) == state


@pytest.mark.parametrize("arm", ["draft", "draft-0", "ngram-3", "off-1", "draft-3\n"])
def test_an_arm_that_does_not_exist_is_refused(arm: str) -> None:
    with pytest.raises(InvalidRecord, match="roundsByArm"):
        SpeculationState.from_json(
            SpeculationState(boot="b1", written_at=datetime.now(UTC))
            .to_json()
            .replace(b'"roundsByArm": {}', b'"roundsByArm": {"%s": 1}' % arm.replace("\n", "\\n").encode())
        )
