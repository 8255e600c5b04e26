"""Fresh roots credit the budget, replay debits it, and the buffer bounds it."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_budget import BUDGET, ReplayBudget
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.state.learning_state import LearningState
from tests.unit.training.data.test_replay import example

recipes = st.builds(Recipe, replay=st.integers(0, 8), passes=st.integers(1, 64))
fresh_batches = st.lists(st.integers(1, 600), max_size=30)


def replayed(budget: ReplayBudget, batch: int, *, beside_fresh: bool, max_batches: int = 100_000) -> int:
    """Replay batches of ``batch`` roots, at most ``max_batches``; returns the roots.

    The default is more than 63 passes over 30 fresh batches of 600 positions need, 16 roots at a time.
    """
    total = 0
    for _ in range(max_batches):
        if not budget.can_replay(beside_fresh=beside_fresh):
            break
        budget.debit(batch, beside_fresh=beside_fresh)
        total += batch
    return total


@given(recipe=recipes, fresh=fresh_batches, batch=st.integers(16, 512))
def test_a_root_is_trained_as_often_as_the_recipe_says(recipe: Recipe, fresh: list[int], batch: int) -> None:
    budget, beside, fresh_roots = ReplayBudget(replay=recipe.replay, passes=recipe.passes), 0, 0
    for roots in fresh:
        fresh_roots += roots
        budget.credit(roots, fresh_roots)
        beside += replayed(budget, batch, beside_fresh=True, max_batches=recipe.replay)
        assert beside < min(recipe.replay, recipe.passes - 1) * fresh_roots + batch
    total = beside + replayed(budget, batch, beside_fresh=False)
    want = (recipe.passes - 1) * fresh_roots if recipe.replay else 0
    assert want <= total < want + batch


@given(recipe=recipes, backlog=st.integers(1, 10**9), buffered=st.integers(1, 50_000))
def test_the_budget_is_bounded_by_what_the_buffer_holds(recipe: Recipe, backlog: int, buffered: int) -> None:
    budget = ReplayBudget(replay=recipe.replay, passes=recipe.passes)
    budget.credit(backlog, buffered)
    assert replayed(budget, 512, beside_fresh=False) < recipe.passes * buffered + 512


@given(recipe=recipes, sizes=st.lists(st.integers(1, 600), min_size=1, max_size=8), kept=st.integers(0, 8))
def test_the_budget_is_bounded_by_what_the_buffer_still_holds_once_shards_expired(
    recipe: Recipe, sizes: list[int], kept: int
) -> None:
    """Otherwise all credit of the shards that are gone would go into the few examples that stay."""
    budget, nothing = ReplayBudget(replay=recipe.replay, passes=recipe.passes), cast(Any, None)
    learning = LearningState(nothing, nothing, ReplayBuffer(1 << 30), budget, HeldOutSet(1, 1, 1), nothing, 0)
    for number, count in enumerate(sizes):
        learning.replay.add([dataclasses.replace(example(), root_count=count)], f"shard {number}")
        budget.credit(count, learning.replay.roots)
    learning.drop([f"shard {number}" for number in range(kept, len(sizes))])
    assert learning.replay.roots == sum(sizes[:kept])
    most = (recipe.passes - 1) * learning.replay.roots if recipe.replay else 0
    assert max(budget.state()[BUDGET].tolist()) <= most
    assert replayed(budget, 512, beside_fresh=False) < most + 512


@given(recipe=recipes, fresh=fresh_batches)
def test_the_budget_outlives_the_process(recipe: Recipe, fresh: list[int]) -> None:
    before, after, buffered = (
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        100_000,
    )
    for roots in fresh:
        before.credit(roots, buffered)
        replayed(before, 512, beside_fresh=True, max_batches=1)
    after.restore(before.state(), buffered)
    assert torch.equal(after.state()["replay.budget"], before.state()["replay.budget"])
    assert [after.can_replay(beside_fresh=b) for b in (True, False)] == [
        before.can_replay(beside_fresh=b) for b in (True, False)
    ]


@given(recipe=recipes, then=recipes, buffered=st.integers(0, 20_000))
def test_a_restored_budget_is_bounded_by_the_new_recipe_and_buffer(recipe: Recipe, then: Recipe, buffered: int) -> None:
    before, after = (
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
        ReplayBudget(replay=then.replay, passes=then.passes),
    )
    before.credit(20_000, 20_000)
    after.restore(before.state(), buffered)
    most = (then.passes - 1) * buffered if then.replay else 0
    assert replayed(after, 512, beside_fresh=False) < most + 512
    if not most:
        assert not after.can_replay(beside_fresh=False)
