"""Comparing two sums of counters: when a side is worse, and when chance explains the difference."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.plan.rollout.analysis import MIN_SAMPLE, Outcome, compare, has_enough_requests, standard_error
from aurora_operator.plan.rollout.world import AnalysisPolicy
from aurora_protocol.agent_api import MAX_SQUARE, LiveCounters
from tests.unit.operator.counters import counters, sums

POLICY = AnalysisPolicy()


def outcome(new: LiveCounters, old: LiveCounters) -> Outcome:
    return compare(new, old, POLICY).outcome


def test_a_loss_within_chance_is_undecided_and_more_traffic_decides() -> None:
    old = counters(100_000, 2.0, spread=0.8)
    assert outcome(counters(100, 1.6, spread=0.8), old) is Outcome.UNDECIDED
    assert outcome(counters(1000, 1.6, spread=0.6), old) is Outcome.BAD
    assert outcome(counters(100, 1.85, spread=0.6), old) is Outcome.GOOD, "within what the policy lets go"


@pytest.mark.parametrize(("new", "old", "expected"), [(1.0, 2.0, Outcome.BAD), (1.02, 1.05, Outcome.GOOD)])
def test_a_draft_that_is_never_used_is_bad_unless_its_peers_do_not_use_theirs(
    new: float, old: float, expected: Outcome
) -> None:
    assert outcome(counters(50, new, spread=0.05), counters(50, old, spread=0.05)) is expected


@pytest.mark.parametrize(("asked", "needed"), [(50, 50), (1, MIN_SAMPLE)])
def test_requests_that_cannot_show_how_much_they_differ_do_not_suffice(asked: int, needed: int) -> None:
    policy = AnalysisPolicy(min_requests=asked)
    assert [has_enough_requests(counters(count, 2.0), policy) for count in (needed - 1, needed)] == [False, True]


@given(requests=st.integers(50, 5000), length=st.floats(1.0, 4.0), more=st.floats(0.0, 1.0), spread=st.floats(0, 1))
def test_a_draft_that_is_as_good_or_better_is_never_bad(
    requests: int, length: float, more: float, spread: float
) -> None:
    better = counters(requests, length + more, spread=spread)
    assert outcome(better, counters(requests, length, spread=spread)) is Outcome.GOOD


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 100_000)), min_size=2, max_size=30))
def test_the_error_is_that_of_the_requests_one_by_one(requests: list[tuple[int, int]]) -> None:
    found = sums(requests)
    length = found.tokens / found.rounds
    residuals = sum((tokens - length * rounds) ** 2 for tokens, rounds in requests)
    error = math.sqrt(residuals * len(requests) / (len(requests) - 1)) / found.rounds
    assert standard_error(found) == pytest.approx(error, rel=1e-6, abs=1e-6)


def test_sums_at_their_limit_have_an_error() -> None:
    full = LiveCounters(requests=99, tokens=2**47, rounds=2**46, **dict.fromkeys(SQUARES, MAX_SQUARE))
    assert math.isfinite(standard_error(full))


SQUARES = ("tokens_squared", "tokens_by_rounds", "rounds_squared")


# simulated traffic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """Requests of very different lengths (120 tokens in the mean). A tenth of them repeat earlier text, so lookup
    answers them."""

    accepted: float
    """Chance of each of three drafted tokens, if those before it are accepted. It varies between requests by 0.2."""
    drafted: float = 1.0
    """Share of the rounds in which the draft proposes."""

    def ended(self, rng: random.Random, requests: int) -> LiveCounters:
        return sums(self._request(rng) for _ in range(requests))

    def _request(self, rng: random.Random) -> tuple[int, int]:
        wanted = max(2, int(rng.lognormvariate(math.log(120) - 0.5, 1.0)))
        repeats, share = rng.random() < 0.1, min(0.98, max(0.0, rng.gauss(self.accepted, 0.2)))
        tokens = rounds = 0
        while tokens < wanted:
            proposed = 7 if repeats else 3 if rng.random() < self.drafted else 0
            chance = 0.85 if repeats else share
            tokens += 1 + next((at for at in range(proposed) if rng.random() >= chance), proposed)
            rounds += 1
        return min(tokens, wanted), rounds


GOOD_DRAFT, HALF_AS_GOOD, UNUSED = Traffic(0.6), Traffic(0.3), Traffic(0.6, drafted=0.0)


def share_bad(new: Traffic, old: Traffic, requests: int, *, times: int = 100) -> float:
    """How often one judgement of so many requests on each side is bad."""
    rng = random.Random(7)  # noqa: S311 - a simulation
    return sum(outcome(new.ended(rng, requests), old.ended(rng, requests)) is Outcome.BAD for _ in range(times)) / times


@pytest.mark.parametrize("draft", [GOOD_DRAFT, HALF_AS_GOOD, UNUSED])
def test_equal_drafts_are_hardly_ever_found_to_differ(draft: Traffic) -> None:
    assert share_bad(draft, draft, 50, times=300) <= 0.005


@pytest.mark.parametrize(("new", "requests"), [(UNUSED, 100), (HALF_AS_GOOD, 300)])
def test_a_worse_draft_is_found_within_so_many_requests(new: Traffic, requests: int) -> None:
    assert share_bad(new, GOOD_DRAFT, requests) >= 0.9
