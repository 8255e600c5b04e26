"""The counters of the speculation controller add up to chains and tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.pod_files import SourceCounters

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
