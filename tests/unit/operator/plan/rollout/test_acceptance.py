"""A draft is judged by the chains that it proposed, whatever lookup did and however many steps were chosen."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.plan.rollout.analysis import PATIENCE, Outcome, compare
from aurora_operator.plan.rollout.world import AnalysisPolicy
from aurora_protocol.agent_api import DraftCounters, LiveCounters
from tests.unit.operator.counters import STEPS, chains, counters, drafting, steady

POLICY = AnalysisPolicy(min_requests=50)
NOTHING = DraftCounters()


def outcome(new: LiveCounters, old: LiveCounters) -> Outcome:
    return compare(new, old, POLICY, STEPS).outcome


def test_lookup_does_not_hide_a_bad_draft() -> None:
    old = drafting(500, steady(500, 0.7), length=1.8)
    assert outcome(drafting(500, steady(500, 0.3), length=4.0), old) is Outcome.BAD
    assert outcome(drafting(500, steady(500, 0.7), length=4.0), old) is Outcome.GOOD


def test_fewer_tokens_a_round_do_not_count_where_the_draft_is_as_good() -> None:
    """A controller under load turns speculation off in most rounds."""
    old = drafting(500, steady(500, 0.7, each=40), length=3.0)
    assert outcome(drafting(500, steady(300, 0.7, each=2), length=1.05), old) is Outcome.GOOD


def test_chains_of_another_length_are_compared_over_the_positions_that_both_have() -> None:
    short, long = steady(500, 0.7, steps=1), steady(500, 0.7, steps=7)
    assert outcome(drafting(500, short), drafting(500, long)) is Outcome.GOOD
    assert outcome(drafting(500, long), drafting(500, short)) is Outcome.GOOD
    assert outcome(drafting(500, steady(500, 0.4, steps=1)), drafting(500, long)) is Outcome.BAD
    text = compare(drafting(500, short), drafting(500, long), POLICY, STEPS).text
    assert text.startswith("acceptance length 1.70 against 1.70 over 1 draft steps, 0.17 accepted draft tokens a round")


def test_rare_long_chains_are_not_compared() -> None:
    """Exploring leaves a few chains of 7 steps, which say little."""
    old = steady(500, 0.7, steps=2)
    lucky = DraftCounters(requests=500, proposed_at=(5000, 5000, 20, 20), accepted_at=(3500, 2450, 20, 20))
    unlucky = DraftCounters(requests=500, proposed_at=(5000, 5000, 20, 20), accepted_at=(3500, 2450))
    for new in (lucky, unlucky):
        assert "over 2 draft steps" in compare(drafting(500, new), drafting(500, old), POLICY, STEPS).text


def test_a_better_draft_that_is_used_more_widely_is_not_rejected_for_a_lower_share() -> None:
    """The old draft is used for the half of the requests that is easy. The new one is better, and used for all."""
    old = drafting(500, steady(250, 0.9, each=20))
    hard, easy = steady(250, 0.6, each=20), steady(250, 0.92, each=20)
    assert outcome(drafting(500, hard.plus(easy)), old) is Outcome.GOOD
    assert outcome(drafting(500, steady(250, 0.6, each=20)), old) is Outcome.BAD, "used as widely, and worse"


def test_a_hopeless_draft_that_the_controller_turned_off_is_rejected_by_the_few_chains_it_proposed() -> None:
    old = drafting(600, steady(600, 0.7))
    assert outcome(drafting(600, steady(30, 0.05, each=2)), old) is Outcome.BAD
    assert outcome(drafting(600, steady(30, 0.6, each=2)), old) is Outcome.UNDECIDED, "within chance"
    assert outcome(drafting(600, NOTHING), old) is Outcome.UNDECIDED, "nothing was proposed, so nothing is blamed"


@pytest.mark.parametrize("new", [NOTHING, steady(5, 0.0), steady(200, 0.5)])
def test_where_the_old_draft_hardly_proposes_the_rest_judges_after_a_while(new: DraftCounters) -> None:
    enough = PATIENCE * POLICY.min_requests
    idle = steady(5, 0.9)
    assert outcome(drafting(enough - 1, new), drafting(enough, idle)) is Outcome.UNDECIDED
    assert outcome(drafting(enough, new), drafting(enough, idle)) is Outcome.GOOD


def test_sides_that_count_in_different_ways_are_not_compared() -> None:
    counted, plain = drafting(500, steady(500, 0.1)), counters(500, 2.5)
    assert outcome(counted, plain) is Outcome.UNDECIDED
    assert outcome(plain, counted) is Outcome.UNDECIDED


chain_counts = st.builds(
    steady, st.integers(0, 400), st.floats(0, 1), steps=st.integers(1, 11), each=st.integers(1, 40)
)


@given(new=chain_counts, old=chain_counts, requests=st.integers(50, 1000), other=st.integers(50, 1000))
def test_a_draft_as_good_at_each_position_is_never_bad(
    new: DraftCounters, old: DraftCounters, requests: int, other: int
) -> None:
    as_good = DraftCounters(
        requests=new.requests,
        proposed_at=new.proposed_at,
        accepted_at=tuple(
            -(-proposed * (old.accepted_at[at] if at < len(old.accepted_at) else 0) // (old.proposed_at[0] or 1))
            for at, proposed in enumerate(new.proposed_at)
        ),
    )
    assert outcome(drafting(requests, as_good), drafting(other, old)) is not Outcome.BAD


@dataclass(frozen=True)
class Chooser:
    """Stands in for a controller: how it chooses the steps of a request, by how easy the request is."""

    drafted: float  # share of the rounds in which the draft proposes
    steps: int  # in easy requests
    steps_if_hard: int

    def chains(self, rng: random.Random) -> list[tuple[int, int]]:
        """The chains of one request of 40 rounds."""
        share = min(0.98, max(0.02, rng.gauss(0.6, 0.25)))
        proposed = self.steps if share > 0.6 else self.steps_if_hard
        drafted = sum(rng.random() < self.drafted for _ in range(40)) if proposed else 0
        return [
            (proposed, next((at for at in range(proposed) if rng.random() >= share), proposed)) for _ in range(drafted)
        ]


CHOOSERS = (
    Chooser(0.02, 1, 1),
    Chooser(0.1, 3, 3),
    Chooser(0.6, 5, 0),
    Chooser(0.6, 5, 2),
    Chooser(1.0, 5, 1),
    Chooser(1.0, 7, 7),
)


@pytest.mark.parametrize("judged", CHOOSERS)
def test_the_same_draft_is_never_bad_however_each_side_chooses_its_rounds(judged: Chooser) -> None:
    rng = random.Random(1)  # noqa: S311 - a simulation

    def side(chooser: Chooser) -> LiveCounters:
        return drafting(PATIENCE * 50, chains(chooser.chains(rng) for _ in range(PATIENCE * 50)))

    assert [peers for peers in CHOOSERS for _ in range(3) if outcome(side(judged), side(peers)) is Outcome.BAD] == []
