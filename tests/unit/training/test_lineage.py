"""Creating the lineage with its initial draft survives kills at any write."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.errors import CheckpointFormatError, HeadRefused
from aurora_runtime.training import lineage
from aurora_runtime.training.model import initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.state.orphan_cleanup import orphans
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.unit.training import tiny
from tests.unit.training.heads import published


def test_creating_the_lineage_survives_a_kill_before_any_write(model: TargetModel) -> None:
    whole, objects = tiny.memory_registry()
    times = tiny.ticking_clock()
    tiny.open_lineage(whole, model, times)
    writes = len(objects.data)
    assert writes == 5  # config, weights, manifest, registration, lineage
    for kill in range(writes):
        registry, objects = tiny.memory_registry()
        objects.fail_at = kill
        with pytest.raises(KeyboardInterrupt):
            tiny.open_lineage(registry, model, times)
        if registry.lineage() is not None:
            registry.registration(0)
        objects.fail_at = None
        tiny.open_lineage(registry, model, times)
        stored = registry.lineage()
        assert stored is not None
        assert registry.registration(0).digest == whole.registration(0).digest
        assert orphans(registry) == set()
        before = dict(objects.data)
        tiny.open_lineage(registry, model, times)
        assert objects.data == before


def test_a_lineage_that_starts_from_a_head_survives_a_kill_before_any_write(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    head = published.write(tmp_path / "head", published.specforge(draft, vocabulary.to_target, model))
    spec = DraftSpec(vocab_size=256, initial=head)
    whole, objects = tiny.memory_registry()
    lineage.open_lineage(whole, model, spec, lineage.utc_now)
    for kill in range(len(objects.data)):
        registry, objects = tiny.memory_registry()
        objects.fail_at = kill
        with pytest.raises(KeyboardInterrupt):
            lineage.open_lineage(registry, model, spec, lineage.utc_now)
        objects.fail_at = None
        made = lineage.open_lineage(registry, model, spec, lineage.utc_now)
        assert registry.registration(0).digest == whole.registration(0).digest
        assert orphans(registry) == set()
        assert (made.draft_vocab_size, made.aux_layers) == (tiny.DRAFT_VOCAB, (1, 3, 4))
        assert made.initial is not None
        assert made.initial.model == head.model
        assert registry.checkpoint(registry.registration(0)).provenance["initial_sha256"] == made.initial.sha256
    shutil.rmtree(tmp_path / "head")
    assert lineage.open_lineage(registry, model, spec, lineage.utc_now) == made, "the head is not needed any more"
    read, read_map = lineage.fetch_draft(registry, 0, model)
    assert read_map.to_target.tolist() == vocabulary.to_target.tolist()
    assert torch.equal(read.fc.weight, draft.fc.weight)


def test_a_head_that_changes_while_the_lineage_is_created_is_refused(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    spec = DraftSpec(initial=published.write(tmp_path / "head", (config, tensors)))
    registry, objects = tiny.memory_registry()
    objects.fail_at = 4
    with pytest.raises(KeyboardInterrupt):
        lineage.open_lineage(registry, model, spec, lineage.utc_now)
    objects.fail_at = None
    published.write(tmp_path / "head", (config, tensors | {"norm.weight": tensors["norm.weight"] * 2}))
    with pytest.raises(HeadRefused, match="changed after version 0 was made"):
        lineage.open_lineage(registry, model, spec, lineage.utc_now)


def test_a_head_of_other_sizes_than_the_targets_layer_sizes_its_lineage(model: TargetModel, tmp_path: Path) -> None:
    config = replace(initial_draft.draft_config(model, 256), intermediate_size=64, heads=2, kv_heads=1, rope_theta=5e5)
    draft = DraftModel(config, model.embedding)
    fields, tensors = published.specforge(draft, torch.arange(256), model)
    sizes = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 5e5}
    spec = DraftSpec(initial=published.write(tmp_path / "head", (fields | sizes, tensors)))
    registry, _ = tiny.memory_registry()
    made = lineage.open_lineage(registry, model, spec, lineage.utc_now)
    assert made.draft_sizes == config.sizes
    assert lineage.fetch_draft(registry, 0, model)[0].config == config


def test_a_lineage_keeps_the_rope_that_it_began_with(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    lineage.open_lineage(registry, model, tiny.DRAFT_SPEC, lineage.utc_now)
    scaling = RopeScaling(rope_type="linear", factor=2.0)
    scaled = replace(model, config=replace(model.config, rope_scaling=scaling))
    tiny.open_lineage(registry, scaled, tiny.ticking_clock())
    assert lineage.fetch_draft(registry, 0, scaled)[0].config.rope_scaling is None
    registry, _ = tiny.memory_registry()
    tiny.open_lineage(registry, scaled, tiny.ticking_clock())
    assert lineage.fetch_draft(registry, 0, model)[0].config.rope_scaling == scaling


def test_a_changed_target_is_refused(model: TargetModel, tmp_path: Path) -> None:
    registry, _ = tiny.memory_registry()
    tiny.open_lineage(registry, model, tiny.ticking_clock())
    other = load_target(tiny.write_target(tmp_path / "other", tied=False))
    with pytest.raises(CheckpointFormatError, match="another target"):
        tiny.open_lineage(registry, other, tiny.ticking_clock())
