"""A session learns, and continues identically after a save."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from aurora_runtime.precision import product_dtype
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.evaluation import evaluate, simulate_verification
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from tests.unit.training import tiny

CPU = torch.device("cpu")


def session_of(folder: Path) -> tuple[Session, list[Example]]:
    draft, vocabulary = tiny.draft_of(tiny.target(folder))
    examples = [e for seed in range(12) for e in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    return Session(draft, vocabulary, Recipe(learning_rate=5e-3, batch_roots=64), CPU), examples


def draws(session: Session, examples: list[Example], count: int) -> list[list[Example]]:
    return [
        [examples[i] for i in torch.randperm(len(examples), generator=session.generator)[:3].tolist()]
        for _ in range(count)
    ]


def test_a_resumed_session_continues_identically(tmp_path: Path) -> None:
    first, examples = session_of(tmp_path)
    for batch in draws(first, examples, 12):
        first.step(batch)
    assert not torch.equal(first.served.fc.weight, first.draft.fc.weight)
    stored = save({n: t.contiguous() for n, t in first.state().items()})
    second, _ = session_of(tmp_path)
    second.restore(load(stored))
    for batch_a, batch_b in zip(draws(first, examples, 5), draws(second, examples, 5), strict=True):
        assert [id(e) for e in batch_a] == [id(e) for e in batch_b]
        assert first.step(batch_a) == second.step(batch_b)
    a, b = first.state(), second.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_training_on_a_few_requests_learns_them(tmp_path: Path) -> None:
    session, examples = session_of(tmp_path)
    before = evaluate(session.draft, examples, session.vocabulary, 3)
    losses = [session.step(examples[:6]) for _ in range(60)]
    after = evaluate(session.draft, examples[:6], session.vocabulary, 3)
    assert losses[-1] < 0.3 * losses[0]
    assert before.acceptance_length < 1.3
    assert after.acceptance_length > 1.8  # a quarter of the random tokens is outside the draft's vocabulary


def test_coverage_is_the_share_of_answer_tokens_that_the_map_holds(tmp_path: Path) -> None:
    session, examples = session_of(tmp_path)
    everything = VocabularyMap.of(torch.arange(tiny.VOCAB), tiny.VOCAB)
    answers = [e.tokens[e.first_root + 2 :][: e.root_count].long() for e in examples]  # slot t proposes token t + 2
    inside = torch.cat([session.vocabulary.to_draft[tokens] >= 0 for tokens in answers])
    assert 0.5 < inside.float().mean() < 1
    assert evaluate(session.draft, examples, session.vocabulary, 3).coverage == inside.float().mean()
    assert evaluate(session.draft, examples, everything, 3).coverage == 1


def test_a_batch_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    session, examples = session_of(tmp_path)
    session.step(examples[:3])
    before = [p.detach().clone() for p in session.draft.parameters()]
    poisoned = list(examples[:2])
    poisoned[0].aux.blocks[0].states[0] = float("inf")
    session.step(poisoned)
    assert all(torch.equal(a, b) for a, b in zip(before, session.draft.parameters(), strict=True))


def moved(session: Session, examples: list[Example]) -> float:
    """The largest change of a weight in one step. In an optimizer's first step that is the learning rate."""
    before = [p.detach().clone() for p in session.draft.parameters()]
    session.step(examples)
    after = session.draft.parameters()
    return max(float((a.detach() - b).abs().max()) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("steps", "share"), [(0, 0.1), (4, 0.5), (9, 1.0), (10**7, 1.0)])
def test_the_learning_rate_warms_up_and_never_falls(tmp_path: Path, steps: int, share: float) -> None:
    session, examples = session_of(tmp_path)
    session.steps = steps
    assert moved(session, examples[:4]) == pytest.approx(share * session.recipe.learning_rate, rel=0.01)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    session, examples = session_of(tmp_path)
    session.recipe = dataclasses.replace(session.recipe, max_gradient_norm=0.02)
    session.step(examples[:4])
    first = [t.float() for name, t in session.state().items() if name.startswith("exp_avg.")]
    norm = float(torch.stack([t.norm() for t in first]).norm())
    assert norm == pytest.approx((1 - session.recipe.betas[0]) * 0.02, rel=0.02)


DEVICES = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_small_updates_are_not_lost_to_the_dtype_of_products(tmp_path: Path, device: torch.device) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    examples = [e for seed in range(4) for e in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    session = Session(draft, vocabulary, Recipe(learning_rate=1e-6, warmup_steps=1), device)
    products = set[torch.dtype]()
    hook = session.draft.midlayer.mlp.up_proj.register_forward_hook(lambda _, __, out: products.add(out.dtype))
    change = moved(session, examples)
    hook.remove()
    assert products == {product_dtype(device.type)}
    assert change == pytest.approx(1e-6, rel=0.2)  # a weight of 1 in bf16 cannot change by less than 4e-3


def test_simulated_verification_counts_rounds_and_tokens_as_serving_does() -> None:
    assert simulate_verification(torch.tensor([[False] * 3] * 5)) == (5, 5)  # none accepted: one bonus token per round
    assert simulate_verification(torch.tensor([[True] * 3] * 8)) == (2, 8)
    assert simulate_verification(torch.tensor([[True, False, True]] * 6)) == (
        3,
        6,
    )  # proposals after a wrong one do not count
    assert simulate_verification(torch.zeros(0, 3, dtype=torch.bool)) == (0, 0)
