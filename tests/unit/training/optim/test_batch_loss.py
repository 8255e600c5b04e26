"""A batch's loss equals the module's formula, and the recipe follows the custom resource."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.pod_settings import StoreSettings, TrainerSettings
from aurora_runtime.training.build import TrainingConfig
from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.objective.position_losses import forward_kl
from aurora_runtime.training.optim.batch_loss import batch_loss
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.settings import TrainingPolicy
from tests.assets.signing import ROOT_OWNER
from tests.assets.traces.verify_nodes import target_rows
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

STEPS = 3


@torch.no_grad()
@pytest.mark.parametrize("discard", [0.3, 1.0])
def test_path_and_rejected_nodes_have_the_weights_of_the_recipe(tmp_path: Path, discard: float) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    examples = [e for seed in range(4) for e in examples_of(tree_trace(seed), tiny.VOCAB)]
    batch = collate(examples, STEPS, vocabulary, with_rejected=True)
    recipe = Recipe(unroll_steps=STEPS, discard=discard, step_decay=0.7)
    want = 0.0
    for depth, (out, rows) in enumerate(zip(unroll(draft, batch.trunk, batch.levels), target_rows(batch), strict=True)):
        weight = 0.7**depth / (1 + 0.7 + 0.7**2)
        for share, part in ((1.0, slice(0, batch.root_count)), (discard, slice(batch.root_count, None))):
            row = rows[:, part]
            losses = forward_kl(draft.logits(out[:, part][row >= 0]), batch.targets[row[row >= 0]])
            want += share * weight * float(losses.mean()) if losses.numel() else 0.0
    assert float(batch_loss(draft, batch, recipe)) == pytest.approx(want, rel=0.02)  # products in bf16


@torch.no_grad()
def test_without_rejected_nodes_their_weight_changes_nothing(tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    examples = [e for seed in range(3) for e in examples_of(tiny.trace(seed, steps=0), tiny.VOCAB)]
    batch = collate(examples, STEPS, vocabulary, with_rejected=True)
    assert float(batch_loss(draft, batch, Recipe(discard=0.0))) == float(batch_loss(draft, batch, Recipe(discard=1.0)))


def test_a_session_learns_the_distributions_after_rejected_nodes(tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    examples = [e for seed in range(4) for e in examples_of(tree_trace(seed), tiny.VOCAB)]

    def loss_of_rejected_nodes() -> float:
        batch = collate(examples, STEPS, vocabulary, with_rejected=True)
        with torch.no_grad():
            with_rejected, without = (batch_loss(session.draft, batch, Recipe(discard=d)) for d in (1.0, 0.0))
        return float(with_rejected - without)

    session = Session(draft, vocabulary, Recipe(learning_rate=5e-3, discard=1.0), torch.device("cpu"))
    before = loss_of_rejected_nodes()
    for _ in range(30):
        session.step(examples)
    assert loss_of_rejected_nodes() < 0.5 * before


@pytest.mark.parametrize(
    ("draft", "training", "width", "want"),
    [
        (DraftSpec(steps=5), TrainingSpec(), 576, Recipe(unroll_steps=5)),
        (DraftSpec(steps=16), TrainingSpec(), 576, Recipe(unroll_steps=16)),
        (DraftSpec(), TrainingSpec(passes=3), 576, Recipe(replay=2, passes=3)),
        (DraftSpec(), TrainingSpec(passes=1), 576, Recipe(replay=0, passes=1)),
        (DraftSpec(), TrainingSpec(), 64, Recipe()),
        (DraftSpec(), TrainingSpec(), 2304, Recipe(learning_rate=0.25e-3)),
    ],
)
def test_the_recipe_follows_the_custom_resource_and_the_width_of_the_target(
    draft: DraftSpec, training: TrainingSpec, width: int, want: Recipe
) -> None:
    store = StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r")
    settings = TrainerSettings(
        namespace="n", name="s", target=TargetSpec(model="m"), draft=draft, training=training, store=store
    )
    assert TrainingConfig.of(settings, width).recipe == want


def test_the_replay_buffer_grows_with_the_width_of_the_target() -> None:
    assert [TrainingPolicy.of(width).replay_bytes >> 30 for width in (576, 1024, 4096)] == [1, 1, 4]
