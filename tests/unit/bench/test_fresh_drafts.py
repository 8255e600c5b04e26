"""A draft is in use from the first chosen round on after which most rounds draft, and is worth what its scene says."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm
from tests.bench.speculation import fresh_pods
from tests.bench.speculation.fresh_drafts import (
    FIRST_SEED,
    MOST_OF,
    PODS,
    SCENES,
    best_arm,
    percentiles,
    rounds_until_used,
)
from tests.bench.speculation.scenarios import CHOOSING_SEEDS, SCORING_SEEDS
from tests.bench.speculation.simulator import PlayedRound

DRAFT = Arm(1, drafts=True)


def played(drafting: list[bool]) -> list[PlayedRound]:
    """Rounds of a millisecond each, with the draft or without."""
    return [PlayedRound(DRAFT if each else OFF, False, 1, 1.0, 1.0) for each in drafting]


@given(st.integers(0, 200), st.integers(MOST_OF, 200))
def test_a_draft_is_used_from_the_round_on_in_which_it_begins_to_run(unused: int, used: int) -> None:
    assert rounds_until_used(played([False] * unused + [True] * used)) == unused


@given(st.integers(0, 20), st.integers(0, 20))
def test_rounds_that_explore_the_draft_do_not_begin_its_use(before: int, between: int) -> None:
    explored = [PlayedRound(DRAFT, True, 1, 1.0, 1.0)]
    rounds = played([False] * before) + explored + played([False] * between + [True] * MOST_OF)
    assert rounds_until_used(rounds) == before + 1 + between
    assert rounds_until_used(explored * 2 * MOST_OF) == math.inf


@given(st.lists(st.booleans(), max_size=150))
def test_a_draft_that_runs_in_every_second_round_is_not_used(others: list[bool]) -> None:
    rounds = played([each and i % 2 == 0 for i, each in enumerate(others)])
    assert rounds_until_used(rounds) == math.inf


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles([math.inf, *map(float, range(20))], 0) == "10 [1, 19]"


def test_pods_have_seeds_of_their_own() -> None:
    others = {*CHOOSING_SEEDS, *SCORING_SEEDS, *range(fresh_pods.FIRST_SEED, fresh_pods.FIRST_SEED + fresh_pods.PODS)}
    assert not others & {*range(FIRST_SEED, FIRST_SEED + PODS)}


def test_a_good_draft_is_worth_about_what_its_scene_says() -> None:
    """A thousand rounds of a few seeds differ by a few percent from all rounds."""
    good = [scene for scene in SCENES if scene.name.startswith("CPU, 1") and scene.name.endswith("x")]
    assert len(good) == 4
    for scene in good:
        speedup = fmean(best_arm(scene, seed).speedup for seed in range(FIRST_SEED, FIRST_SEED + 3))
        assert speedup == pytest.approx(float(scene.name.split()[-1][:-1]), rel=0.06)
