"""Replay is earned by fresh positions, spent by replay, and never more than the memory could be asked for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.optim.recipe import Recipe

recipes = st.builds(Recipe, replay=st.integers(0, 8), passes=st.integers(1, 64))
fresh_batches = st.lists(st.integers(1, 600), max_size=30)


def replayed(budget: ReplayBudget, batch: int, *, beside: bool, most: int = 100_000) -> int:
    """Positions replayed in batches of ``batch``, at most ``most`` of these."""
    total = 0
    for _ in range(most):
        if not budget.can_replay(beside_fresh=beside):
            break
        budget.debit(batch, beside_fresh=beside)
        total += batch
    return total


@given(recipe=recipes, fresh=fresh_batches, batch=st.integers(1, 512))
def test_a_position_is_trained_as_often_as_the_recipe_says(recipe: Recipe, fresh: list[int], batch: int) -> None:
    budget, beside, learnt = ReplayBudget(replay=recipe.replay, passes=recipe.passes), 0, 0
    for positions in fresh:
        learnt += positions
        budget.credit(positions, learnt)
        beside += replayed(budget, batch, beside=True, most=recipe.replay)
        assert beside < min(recipe.replay, recipe.passes - 1) * learnt + batch
    total = beside + replayed(budget, batch, beside=False)
    want = (recipe.passes - 1) * learnt if recipe.replay else 0
    assert want <= total < want + batch


@given(recipe=recipes, backlog=st.integers(1, 10**9), held=st.integers(1, 50_000))
def test_a_long_busy_time_is_not_made_up_for_on_the_little_that_is_remembered(
    recipe: Recipe, backlog: int, held: int
) -> None:
    budget = ReplayBudget(replay=recipe.replay, passes=recipe.passes)
    budget.credit(backlog, held)
    assert replayed(budget, 512, beside=False) < recipe.passes * held + 512


@given(recipe=recipes, fresh=fresh_batches)
def test_what_is_owed_outlives_the_process(recipe: Recipe, fresh: list[int]) -> None:
    before, after, held = (
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        100_000,
    )
    for positions in fresh:
        before.credit(positions, held)
        replayed(before, 512, beside=True, most=1)
    after.restore(before.state(), held)
    assert torch.equal(after.state()["replay.budget"], before.state()["replay.budget"])
    assert [after.can_replay(beside_fresh=b) for b in (True, False)] == [
        before.can_replay(beside_fresh=b) for b in (True, False)
    ]


@given(recipe=recipes, then=recipes, held=st.integers(0, 20_000))
def test_another_recipe_or_a_smaller_memory_owes_no_more_than_it_could(recipe: Recipe, then: Recipe, held: int) -> None:
    before, after = (
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        ReplayBudget(replay=then.replay, passes=then.passes),
    )
    before.credit(20_000, 20_000)
    after.restore(before.state(), held)
    most = (then.passes - 1) * held if then.replay else 0
    assert replayed(after, 512, beside=False) < most + 512
    if not most:
        assert not after.can_replay(beside_fresh=False)
