"""The replay buffer is bounded and draws all examples alike. Its budget decides how often an example is trained."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.kept_states import HeldBytes, KeptStates, StateBlock
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_budget import BUDGET, ReplayBudget
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.state.learning_state import LearningState
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

DRAWS = 4000
SPARE = 512
"""Positions by which the last batch may overdraw the budget."""


@cache
def base_example() -> Example:
    return examples_of(tiny.trace(1), tiny.VOCAB)[0]


def example(slots: int = 8) -> Example:
    """An example with states of its own. All else it shares with the others."""
    states = StateBlock(torch.zeros(slots, 3 * tiny.HIDDEN), torch.ones(slots))
    return dataclasses.replace(base_example(), aux=KeptStates(0, (states,)))


def buffer_of(examples: Sequence[Example], limit: int = 1 << 30) -> ReplayBuffer:
    buffer = ReplayBuffer(limit)
    for each in examples:
        buffer.add([each])
    return buffer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identities(examples: Sequence[Example]) -> list[int]:
    return [id(each) for each in examples]


def near(share: float, probability: float) -> bool:
    """Within four standard errors."""
    return abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / DRAWS)


def test_a_uniform_draw_gives_all_examples_the_same_chance() -> None:
    buffer, g = buffer_of([example() for _ in range(8)]), generator()
    drawn = Counter(identities(buffer.sample(BatchBound(1000, 8), g))[0] for _ in range(DRAWS))
    assert all(near(drawn[each] / DRAWS, 1 / 8) for each in identities(buffer.examples()))


sizes = st.lists(st.integers(1, 40), max_size=25)


@given(sizes, st.integers(1, 200), st.integers(0, 9))
def test_a_draw_has_distinct_examples_within_its_slots(sizes: list[int], slots: int, seed: int) -> None:
    buffer = buffer_of([example(slots=n) for n in sizes])
    drawn = buffer.sample(BatchBound(10_000, slots), generator(seed))
    assert bool(drawn) == bool(sizes)
    assert len(set(identities(drawn))) == len(drawn)
    assert set(identities(drawn)) <= set(identities(buffer.examples()))
    assert len(drawn) <= 1 or len(drawn) * max(each.slots for each in drawn) <= slots
    everything = buffer.sample(BatchBound(10_000, 40 * len(sizes)), generator(seed))
    assert sorted(identities(everything)) == sorted(identities(buffer.examples()))


@given(sizes, st.integers(1, 30))
def test_the_buffer_keeps_its_bound_and_order(sizes: list[int], room: int) -> None:
    limit = room * example(slots=8).nbytes
    every, buffer = [example(slots=n) for n in sizes], ReplayBuffer(limit)
    for each in every:
        buffer.add([each])
        assert buffer.nbytes == HeldBytes(buffer.examples()).total
        assert buffer.nbytes <= limit or len(buffer) == 1
        assert buffer.examples()[-1] is each
    place = {id(each): i for i, each in enumerate(every)}
    ages = [place[id(each)] for each in buffer.examples()]
    assert ages == sorted(ages)


@pytest.mark.parametrize("count", [20, 43, 100, 1000])
def test_each_buffers_worth_of_new_traffic_evicts_the_same_share_of_the_old(count: int) -> None:
    """The module's docstring gives these figures: 1/e of A is left after one buffer of B, 1/e² after two."""
    a = [example(1) for _ in range(count)]
    buffer, former = buffer_of(a, HeldBytes(a).total), set(identities(a))

    def left() -> float:
        return sum(each in former for each in identities(buffer.examples())) / count

    assert left() == 1.0
    for buffers, low, high in ((1, 0.30, 0.42), (2, 0.09, 0.17)):
        for _ in range(count):
            buffer.add([example(1)])
        assert low <= left() <= high, buffers
    for _ in range(8 * count):
        buffer.add([example(1)])
    assert left() < 0.01, "traffic that never comes back is forgotten in the end"


def test_a_resumed_trainer_replays_the_same_examples(tmp_path: Path) -> None:
    states = []
    for shards_per_run in ((3,), (2, 1)):
        rig = TrainerRig(tmp_path / str(len(shards_per_run)))
        rig.recipe = Recipe(replay=3, passes=2, batch_roots=20)
        for shards in shards_per_run:
            trainer = rig.trainer(Traffic(rig.registry, shards))
            trainer.run()
        assert trainer.learning.ledger.total == 3
        states.append(trainer.learning.session.state())
    whole, resumed = states
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_shards_of_few_traces_are_trained_no_more_often_than_large_ones(tmp_path: Path) -> None:
    """Replayed batches are full however small a shard is, so three beside each shard would be many passes."""
    rig = TrainerRig(tmp_path)
    rig.settings = rig.settings.model_copy(update={"training": TrainingSpec(publish_tokens=1 << 29)})
    trainer = rig.trainer(Traffic(rig.registry, 8))
    trainer.run()
    recipe, session = trainer.learning.session.recipe, trainer.learning.session
    assert recipe == Recipe(), "the defaults of the custom resource are the measured ones"
    assert session.steps > 8
    assert session.trained_positions < recipe.passes * trainer.learning.trained_tokens + SPARE


def test_requests_behind_a_shared_prompt_are_trained_as_often_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine computes a shared prompt once, so most traces lack its states and borrow them."""
    shared, requests = 300, 24
    whole = [tiny.trace(seed, prompt=shared + 4) for seed in range(requests)]
    tokens = [torch.cat([whole[0].tokens[:shared], one.tokens[shared:]]) for one in whole]
    cached = [
        dataclasses.replace(
            one,
            request=number,
            tokens=own,
            hidden_start=shared if number else 0,
            hidden=one.hidden[shared:] if number else one.hidden,
        )
        for number, (one, own) in enumerate(zip(whole, tokens, strict=True))
    ]
    rig, trained, step = TrainerRig(tmp_path), list[int](), Session.step
    tiny.put_shard(rig.registry, 0, cached)
    rig.recipe = Recipe(passes=8)

    def recording_step(session: Session, examples: Sequence[Example]) -> float:
        trained.extend(each.root_count for each in examples)
        return step(session, examples)

    monkeypatch.setattr(Session, "step", recording_step)
    trainer = rig.trainer(Traffic(rig.registry, 0))
    trainer.run()
    buffered = trainer.learning.replay.roots
    assert len(trainer.learning.replay) > requests / 2, "held-out requests are not trained"
    assert 8 * buffered <= sum(trained) < 8 * buffered + rig.recipe.batch_roots


def test_a_backlog_is_replayed_only_beside_fresh_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further passes are made only while the trainer would wait for traces."""
    rig = TrainerRig(tmp_path)
    for seq in range(4):
        tiny.put_shard(rig.registry, seq, [tiny.trace(3 * seq + n) for n in range(3)])
    trainer = rig.trainer(Traffic(rig.registry, 0))
    monkeypatch.setattr(trainer.stages.replay, "possible_while_waiting", lambda: False)
    trainer.run()
    recipe, session = trainer.learning.session.recipe, trainer.learning.session
    assert trainer.learning.ledger.total == 4
    most = (1 + recipe.replay) * trainer.learning.trained_tokens
    assert most - SPARE < session.trained_positions < most + SPARE


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
