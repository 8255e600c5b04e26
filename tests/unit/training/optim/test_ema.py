"""Served weights are an average of the trained ones, survive a save, and never influence training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.optim.ema import EMA_OFFSET, WeightEma
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from tests.unit.training import tiny


@pytest.fixture
def draft(tmp_path: Path) -> DraftModel:
    return tiny.draft_of(tiny.target(tmp_path))[0]


def fill(draft: DraftModel, value: float) -> None:
    with torch.no_grad():
        draft.norm.weight.fill_(value)


def mean_after(average: WeightEma, draft: DraftModel, values: range) -> float:
    """The average of a weight that takes one of ``values`` at each step."""
    for value in values:
        fill(draft, float(value))
        average.update()
    found = average.draft.norm.weight
    assert bool((found == found[0]).all())
    return float(found[0])


def test_the_average_first_spans_a_share_of_the_steps(draft: DraftModel) -> None:
    average = WeightEma(draft, 1000)
    assert 75 < mean_after(average, draft, range(101)) < 90  # about a fifth of the steps behind
    assert average.draft.embedding is draft.embedding
    assert all(not p.requires_grad for p in average.draft.parameters())


def test_the_average_later_spans_its_maximum_window(draft: DraftModel) -> None:
    assert mean_after(WeightEma(draft, 20), draft, range(2001)) == pytest.approx(2000 - 19, abs=0.1)


def test_the_live_average_is_rounded_to_the_stored_one(draft: DraftModel) -> None:
    average, random = WeightEma(draft, 20), torch.Generator().manual_seed(1)
    for _ in range(30):
        with torch.no_grad():
            for parameter in draft.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=random))
        average.update()
    exact = {name: p.detach().clone() for name, p in average.draft.named_parameters()}
    stored = average.state()
    other = WeightEma(draft, 20)
    other.restore(stored)
    for name, averaged in average.draft.named_parameters():
        assert stored[f"{EMA_OFFSET}.{name}"].dtype is torch.bfloat16
        assert torch.equal(averaged, dict(other.draft.named_parameters())[name])
        offset = (exact[name] - dict(draft.named_parameters())[name]).abs()
        assert bool(((averaged - exact[name]).abs() <= offset / 200 + 1e-7).all()), "only the offset was rounded"
    average.update()
    other.update()
    assert all(torch.equal(a, b) for a, b in zip(average.state().values(), other.state().values(), strict=True))


def test_the_average_starts_at_the_weights_of_a_state_without_average(draft: DraftModel) -> None:
    average = WeightEma(draft, 20)
    fill(draft, 3.0)
    average.restore({})
    assert bool((average.draft.norm.weight == 3).all())


def test_the_average_is_served_and_does_not_influence_training(tmp_path: Path) -> None:
    def learned(max_window: int) -> Session:
        recipe = Recipe(learning_rate=5e-3, max_average_window=max_window)
        session = Session(*tiny.draft_of(tiny.target(tmp_path)), recipe, torch.device("cpu"))
        for _ in range(40):
            session.step(examples)
        return session

    examples: list[Example] = [e for seed in range(3) for e in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    plain, averaged = learned(1), learned(20)
    assert torch.equal(plain.draft.lm_head.weight, averaged.draft.lm_head.weight)
    assert torch.equal(plain.served.lm_head.weight, plain.draft.lm_head.weight)
    assert not torch.equal(averaged.served.lm_head.weight, averaged.draft.lm_head.weight)
