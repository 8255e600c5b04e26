"""A draft that was trained here, exported and imported is the same draft, and goes on learning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aurora_api.v1alpha1.draft import DraftSpec, PublishedHead
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import lineage
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.heads.head_export import HeadFormat, export_head
from aurora_runtime.training.optim.recipe import WARM_START_STEPS, Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny
from tests.unit.training.test_candidates import session_with_gain
from tests.unit.training.trainer_rig import Traffic, TrainerRig

STEPS = 3


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> TargetModel:
    return tiny.target(tmp_path_factory.mktemp("model") / "target")


@pytest.fixture(name="trained", scope="module")
def _trained(model: TargetModel) -> PodRegistry:
    """A lineage whose version 1 was trained. The tests only read it."""
    registry, _ = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    assert candidates.offer(session, held_out, 300).registration is not None
    return registry


def examples(*seeds: int) -> list[Example]:
    return [example for seed in seeds for example in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]


@pytest.mark.parametrize("head_format", HeadFormat)
@pytest.mark.parametrize("with_embedding", [False, True])
def test_an_exported_draft_starts_another_lineage_as_it_was_and_goes_on_learning(
    trained: PodRegistry, model: TargetModel, tmp_path: Path, head_format: HeadFormat, *, with_embedding: bool
) -> None:
    export_head(trained, 1, tmp_path / "head", head_format, STEPS, model.embedding if with_embedding else None)
    registry, _ = tiny.memory_registry()
    spec = DraftSpec(initial=PublishedHead(model=str(tmp_path / "head")))
    lineage.open_lineage(registry, model, spec, lineage.utc_now)
    assert registry.registration(1).digest == trained.registration(1).digest
    (draft, vocabulary), (before, before_map) = (
        lineage.fetch_draft(stored, 1, model) for stored in (registry, trained)
    )
    assert vocabulary.to_target.tolist() == before_map.to_target.tolist()
    traffic = examples(*range(6))
    imported = evaluate(draft, traffic, vocabulary, STEPS)
    assert imported == evaluate(before, traffic, before_map, STEPS)
    assert imported.acceptance_length > 1.5
    other = examples(*range(20, 26))
    at_first = evaluate(draft, other, vocabulary, STEPS).acceptance_length
    session = Session(draft, vocabulary, Recipe(learning_rate=5e-3).warm_start(), torch.device("cpu"))
    for _ in range(80):
        session.step(other)
    assert evaluate(session.served, other, session.vocabulary, STEPS).acceptance_length > at_first + 0.5


def test_the_trainer_goes_on_from_a_head_at_a_rate_that_begins_low(tmp_path: Path, trained: PodRegistry) -> None:
    export_head(trained, 1, tmp_path / "head", HeadFormat.SGLANG, STEPS)
    started = TrainerRig(tmp_path / "a", DraftSpec(initial=PublishedHead(model=str(tmp_path / "head"))))
    usual = TrainerRig(tmp_path / "b")
    for rig, warmup in ((started, WARM_START_STEPS), (usual, Recipe().warmup_steps)):
        beginning = lineage.newest_draft(rig.registry, rig.target)[1][0]
        trainer = rig.trainer(Traffic(rig.registry, 2))
        trainer.run()
        session = trainer.learning.session
        rate = session._optimizer.param_groups[0]["lr"]
        assert session.steps > 0
        assert rate == pytest.approx(Recipe().learning_rate * session.steps / warmup)
        assert not torch.equal(session.draft.fc.weight, beginning.fc.weight)
    resumed = started.trainer(Traffic(started.registry, 0)).learning.session
    assert resumed.recipe.warmup_steps == WARM_START_STEPS
    assert (
        resumed.vocabulary.to_target.tolist() == lineage.fetch_draft(trained, 1, started.target)[1].to_target.tolist()
    )


def test_the_folder_for_sglang_is_the_stored_draft_and_that_for_speculators_has_their_names(
    trained: PodRegistry, model: TargetModel, tmp_path: Path
) -> None:
    for head_format in HeadFormat:
        export_head(trained, 1, tmp_path / head_format.value, head_format, STEPS, model.embedding)
    stored = tmp_path / "stored"
    trained.fetch_checkpoint(trained.registration(1), stored)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "sglang" / name).read_bytes() == (stored / name).read_bytes()
    config = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert config["speculators_model_type"] == "eagle3"
    assert config["norm_before_residual"] is False
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    assert config["speculators_config"]["verifier"]["name_or_path"] == model.identity.model
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == STEPS
    tensors, own = load_file(tmp_path / "speculators" / "model.safetensors"), load_file(stored / "model.safetensors")
    assert torch.equal(tensors.pop("embed_tokens.weight"), model.embedding)
    assert {name.replace("layers.0.", "midlayer.") for name in tensors} == own.keys()
    assert all(torch.equal(own[name.replace("layers.0.", "midlayer.")], tensor) for name, tensor in tensors.items())
