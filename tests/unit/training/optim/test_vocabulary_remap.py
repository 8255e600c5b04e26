"""A draft under another map keeps the rows of the tokens that both maps hold, and goes on learning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model.initial_draft import initial_draft
from aurora_runtime.training.optim.ema import EMA_OFFSET, EMA_STEPS
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.optim.weight_update import MOMENTS
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.unit.training import tiny

CPU = torch.device("cpu")
IDS = torch.tensor(sorted({*range(90, 389), 399}))
HEAD = "lm_head.weight"
HEAD_STATE_PARTS = (*MOMENTS, EMA_OFFSET)


@pytest.fixture
def target(tmp_path: Path) -> TargetModel:
    return load_target(tiny.write_target(tmp_path, tied=False))  # its head is not its embedding


def session_of(target: TargetModel) -> tuple[Session, list[Example]]:
    draft, vocabulary = tiny.draft_of(target)
    examples = [e for seed in range(6) for e in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    return Session(draft, vocabulary, Recipe(learning_rate=5e-3), CPU), examples


def trained(target: TargetModel) -> tuple[Session, list[Example], dict[str, Tensor]]:
    """A session after some steps, its examples, and its state."""
    session, examples = session_of(target)
    for _ in range(12):
        session.step(examples)
    return session, examples, {name: tensor.clone() for name, tensor in session.state().items()}


def test_shared_rows_keep_their_state_and_new_rows_are_the_targets(target: TargetModel) -> None:
    session, _, before = trained(target)
    old = session.vocabulary
    after = remapped(session.state(), IDS, target.head)
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"vocabulary", EMA_STEPS, f"weight.{HEAD}", *(f"{part}.{HEAD}" for part in HEAD_STATE_PARTS)}
    assert 200 < sum(int(old.to_draft[i]) >= 0 for i in IDS) < len(IDS)
    for row, token in enumerate(IDS.tolist()):
        place = int(old.to_draft[token])
        for name in (f"weight.{HEAD}", *(f"{part}.{HEAD}" for part in HEAD_STATE_PARTS)):
            fresh = target.head[token].float() if name.startswith("weight.") else torch.zeros(tiny.HIDDEN)
            want = before[name][place] if place >= 0 else fresh.to(before[name].dtype)
            assert torch.equal(after[name][row], want)


def test_remapping_an_untrained_session_gives_the_initial_draft_of_the_map(target: TargetModel) -> None:
    session, _ = session_of(target)
    after = remapped(session.state(), IDS, target.head)
    for name, parameter in initial_draft(target, session.draft.config, IDS).named_parameters():
        assert torch.equal(after[f"weight.{name}"], parameter)


def test_a_map_change_restarts_the_average(target: TargetModel) -> None:
    session, examples, _ = trained(target)
    assert not torch.equal(session.served.lm_head.weight, session.draft.lm_head.weight)
    session.restore(remapped(session.state(), IDS, target.head))
    session.step(examples)
    assert torch.equal(session.served.lm_head.weight, session.draft.lm_head.weight)


def test_new_tokens_are_learnt(target: TargetModel) -> None:
    session, _, _ = trained(target)
    examples = [e for s in range(3) for e in examples_of(tiny.trace(s, answer=20, least=300), tiny.VOCAB)]
    assert evaluate(session.draft, examples, session.vocabulary, 3).coverage < 0.1
    session.restore(remapped(session.state(), IDS, target.head))
    losses = [session.step(examples) for _ in range(60)]
    found = evaluate(session.draft, examples, session.vocabulary, 3)
    assert found.coverage > 0.8
    assert losses[-1] < 0.3 * losses[0]
    assert found.acceptance_length > 1.8
