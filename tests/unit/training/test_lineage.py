"""Creating the lineage with its first drafts survives kills at any write."""

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
    writes = len(objects.data)
    assert writes == 9  # config, weights, manifest and registration of two versions, and the lineage
    for kill in range(writes):
        registry, objects = tiny.memory_registry()
        objects.fail_at = kill
        with pytest.raises(KeyboardInterrupt):
            lineage.open_lineage(registry, model, spec, lineage.utc_now)
        assert registry.lineage() is None, "the lineage comes last"
        objects.fail_at = None
        made = lineage.open_lineage(registry, model, spec, lineage.utc_now)
        for version in (0, 1):
            assert registry.registration(version).digest == whole.registration(version).digest
        assert len(objects.data) == writes
        assert orphans(registry) == set()
        assert (made.draft_vocab_size, made.aux_layers) == (tiny.DRAFT_VOCAB, (1, 3, 4))
        assert made.initial is not None
        assert made.initial.model == head.model
        for version, key in enumerate(["made_for_initial_sha256", "initial_sha256"]):
            provenance = registry.checkpoint(registry.registration(version)).provenance
            named = {key: digest for key, digest in provenance.items() if "initial" in key}
            assert named == {key: made.initial.sha256}
    shutil.rmtree(tmp_path / "head")
    assert lineage.open_lineage(registry, model, spec, lineage.utc_now) == made, "the head is not needed any more"
    read, read_map = lineage.fetch_draft(registry, 1, model)
    assert read_map.to_target.tolist() == vocabulary.to_target.tolist()
    assert torch.equal(read.fc.weight, draft.fc.weight)
    assert lineage.newest_draft(registry, model)[0].version == 1, "training goes on from the head"


def test_version_0_of_a_head_is_untrained_and_an_engine_can_swap_between_the_two(
    model: TargetModel, tmp_path: Path
) -> None:
    draft, vocabulary = published.trained_draft(model)
    head = published.write(tmp_path / "head", published.specforge(draft, vocabulary.to_target, model))
    registry, _ = tiny.memory_registry()
    lineage.open_lineage(registry, model, DraftSpec(initial=head), lineage.utc_now)
    (untrained, its_map), (imported, heads_map) = (lineage.fetch_draft(registry, version, model) for version in (0, 1))
    assert untrained.config == imported.config
    assert its_map.to_target.tolist() == heads_map.to_target.tolist()
    expected = initial_draft.initial_draft(model, imported.config, heads_map.to_target)
    for name, weight in untrained.state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name].to(torch.bfloat16).to(weight.dtype)), name
    assert not torch.equal(untrained.fc.weight, imported.fc.weight)


def test_a_version_0_that_is_the_head_stays_so_and_does_not_become_version_1(
    model: TargetModel, tmp_path: Path
) -> None:
    """As an earlier version of Aurora began a lineage, and crashed before the lineage's record."""
    draft, vocabulary = published.trained_draft(model)
    spec = DraftSpec(
        initial=published.write(tmp_path / "head", published.specforge(draft, vocabulary.to_target, model))
    )
    whole, _ = tiny.memory_registry()
    made = lineage.open_lineage(whole, model, spec, lineage.utc_now)
    registry, objects = tiny.memory_registry()
    stored = whole.checkpoint(whole.registration(1))
    whole.fetch_checkpoint(whole.registration(1), tmp_path / "version 0")
    lineage.publish(registry, tmp_path / "version 0", stored.model_copy(update={"version": 0}))
    before = set(objects.data)
    opened = lineage.open_lineage(registry, model, spec, lineage.utc_now)
    assert opened.model_copy(update={"created": made.created}) == made
    assert len(objects.data.keys() - before) == 1, "the lineage's record"
    assert registry.last_version() == 0
    assert registry.registration(0).digest == whole.registration(1).digest


@pytest.mark.parametrize("writes", [4, 5, 8], ids=["version 0", "a part of the head", "both versions"])
def test_a_head_that_changes_while_the_lineage_is_created_is_refused(
    model: TargetModel, tmp_path: Path, writes: int
) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    spec = DraftSpec(initial=published.write(tmp_path / "head", (config, tensors)))
    registry, objects = tiny.memory_registry()
    objects.fail_at = writes
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
    untrained, imported = (lineage.fetch_draft(registry, version, model)[0] for version in (0, 1))
    assert untrained.config == imported.config == config
    assert not untrained.midlayer.self_attn.o_proj.weight.any(), "the target's attention has other sizes"
    assert torch.equal(untrained.lm_head.weight, model.head[:256].to(torch.bfloat16).float())


def test_a_half_of_the_layer_is_copied_although_the_other_does_not_fit(model: TargetModel) -> None:
    usual = initial_draft.draft_config(model, 256)
    wider = replace(usual, intermediate_size=2 * usual.intermediate_size)
    narrower = replace(usual, intermediate_size=usual.intermediate_size // 2)
    turned = replace(usual, rope_theta=2 * usual.rope_theta)
    copied = model.last_layer.tensors
    draft = initial_draft.initial_draft(model, wider, torch.arange(256)).midlayer
    assert torch.equal(draft.self_attn.o_proj.weight, copied["self_attn.o_proj.weight"])
    assert torch.equal(draft.mlp.down_proj.weight[:, : usual.intermediate_size], copied["mlp.down_proj.weight"])
    assert not draft.mlp.down_proj.weight[:, usual.intermediate_size :].any()
    draft = initial_draft.initial_draft(model, narrower, torch.arange(256)).midlayer
    assert torch.equal(draft.self_attn.o_proj.weight, copied["self_attn.o_proj.weight"])
    assert not draft.mlp.down_proj.weight.any()
    draft = initial_draft.initial_draft(model, turned, torch.arange(256)).midlayer
    assert not draft.self_attn.o_proj.weight.any(), "the target's queries and keys were made for another rope"
    assert torch.equal(draft.mlp.down_proj.weight, copied["mlp.down_proj.weight"])


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
    with pytest.raises(CheckpointFormatError):
        tiny.open_lineage(registry, other, tiny.ticking_clock())
