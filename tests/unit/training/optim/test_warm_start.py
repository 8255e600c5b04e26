"""A trained draft without its optimizer's moments is trained slowly at first."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from aurora_runtime.training import lineage
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.optim.recipe import WARM_START_STEPS, Recipe
from aurora_runtime.training.state import trainer_state
from tests.unit.training.trainer_rig import Traffic, TrainerRig


def register_trained(rig: TrainerRig, trained_tokens: int) -> None:
    """Register version 1, which a trainer trained whose states are lost."""
    draft, vocabulary = lineage.fetch_draft(rig.registry, 0, rig.target)
    with tempfile.TemporaryDirectory() as folder:
        exported = checkpoint.export(draft, vocabulary.to_target, Path(folder))
        first = rig.registry.checkpoint(rig.registry.registration(0))
        changes = {"version": 1, "trained_tokens": trained_tokens, "digest": exported.digest, "files": exported.files}
        lineage.publish(rig.registry, Path(folder), first.model_copy(update=changes))


@pytest.mark.parametrize(
    ("trained_tokens", "steps"), [(0, Recipe().warmup_steps), (1000, WARM_START_STEPS)], ids=["untrained", "trained"]
)
def test_a_draft_is_trained_slowly_at_first_where_the_moments_of_its_training_are_lost(
    trained_tokens: int, steps: int, tmp_path: Path
) -> None:
    rig = TrainerRig(tmp_path)
    register_trained(rig, trained_tokens)
    trainer = rig.trainer(Traffic(rig.registry, 1))
    assert trainer.learning.session.recipe.warmup_steps == steps
    trainer.run()
    restarted = rig.trainer(Traffic(rig.registry, 0))
    assert restarted.learning.session.recipe.warmup_steps == Recipe().warmup_steps, "its state holds the moments"


def test_a_state_that_was_stored_before_the_first_step_does_not_end_the_slow_start(tmp_path: Path) -> None:
    rig = TrainerRig(tmp_path)
    register_trained(rig, 1000)
    rig.trainer(Traffic(rig.registry, 1, damaged=True)).run()
    stored = trainer_state.read(rig.registry, rig.lineage)
    assert stored is not None
    assert (stored.record.step, len(stored.record.consumed), stored.has_moments) == (0, 1, False)
    assert rig.trainer(Traffic(rig.registry, 0)).learning.session.recipe.warmup_steps == WARM_START_STEPS
