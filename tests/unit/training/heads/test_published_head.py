"""A published head of each format becomes a draft with the same weights, the same map and the same logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec, PublishedHead
from aurora_runtime.training import lineage
from aurora_runtime.training.heads.head_export import HeadFormat, export_head
from aurora_runtime.training.heads.published_head import read_head
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny
from tests.unit.training.heads import published

LLAMA_31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def logits(draft: DraftModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    hidden = draft.fuse(torch.randn(1, 5, 3 * tiny.HIDDEN, generator=generator))
    inputs = draft.inputs(hidden, torch.arange(5)[None])
    positions = torch.arange(5)[None]
    q, k, v = draft.queries(inputs, positions), draft.keys(inputs, positions), draft.values(inputs)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return draft.logits(draft.finish(hidden, attended))


@pytest.mark.parametrize("name", published.FORMATS)
def test_a_head_of_each_format_is_the_draft_that_was_published(name: str, model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    ids = vocabulary.to_target
    head = published.write(tmp_path / "head", published.FORMATS[name](draft, ids, model))
    read = read_head(head, model)
    assert read.ids.tolist() == ids.tolist()
    assert read.draft.config == draft.config
    for tensor, weight in draft.state_dict().items():
        assert torch.equal(read.draft.state_dict()[tensor], weight), tensor
    with torch.no_grad():
        assert torch.equal(logits(read.draft), logits(draft))
    assert (read.origin.model, read.origin.revision) == (head.model, None)
    assert len(read.origin.sha256) == 64


def test_a_head_in_two_files_is_read(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    head = published.write(tmp_path / "head", published.specforge(draft, vocabulary.to_target, model))
    whole = read_head(head, model)
    published.in_two_files(tmp_path / "head")
    split = read_head(head, model)
    assert split.ids.tolist() == whole.ids.tolist()
    assert torch.equal(split.draft.lm_head.weight, whole.draft.lm_head.weight)


def test_a_map_in_another_order_is_sorted_with_the_rows_of_the_head(model: TargetModel, tmp_path: Path) -> None:
    """SGLang takes any order, and a swap into a running engine takes ascending ids only."""
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    order = torch.randperm(vocabulary.to_target.numel(), generator=torch.Generator().manual_seed(3))
    mixed = tensors | {
        "lm_head.weight": tensors["lm_head.weight"][order],
        "d2t": published.offsets(vocabulary.to_target[order]),
    }
    read = read_head(published.write(tmp_path / "head", (config, mixed)), model)
    assert read.ids.tolist() == vocabulary.to_target.tolist()
    assert torch.equal(read.draft.lm_head.weight, draft.lm_head.weight)


def test_a_head_without_a_map_and_without_a_head_of_its_own_scores_all_tokens_as_the_target(
    model: TargetModel, tmp_path: Path
) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    del config["draft_vocab_size"], tensors["d2t"], tensors["t2d"], tensors["lm_head.weight"]
    read = read_head(published.write(tmp_path / "head", (config, tensors)), model)
    assert read.ids.tolist() == list(range(tiny.VOCAB))
    assert torch.equal(read.draft.lm_head.weight, model.head.float())


def test_more_or_fewer_hidden_states_are_possible(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.sglang(draft, vocabulary.to_target, model)
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [2, 6]}
    tensors["fc.weight"] = tensors["fc.weight"][:, : 2 * tiny.HIDDEN]
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    read = read_head(published.write(tmp_path / "head", (config, tensors)), model)
    assert read.draft.config.aux_layers == (2, 6)
    torch.testing.assert_close(read.draft.lm_head.weight, draft.lm_head.weight, rtol=1e-3, atol=1e-6)


def test_fields_that_a_llama_config_leaves_out_have_the_values_that_transformers_gives_them(
    model: TargetModel, tmp_path: Path
) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    del config["rope_theta"], config["rms_norm_eps"], config["hidden_act"], config["head_dim"]
    read = read_head(published.write(tmp_path / "head", (config, tensors)), model).draft.config
    assert (read.rope_theta, read.rms_norm_eps, read.head_dim) == (10_000.0, 1e-6, 8)


@pytest.mark.parametrize(
    ("rope_scaling", "described"),
    [
        (LLAMA_31, "llama3, factor 8 beyond 8 tokens"),
        ({"type": "yarn", "factor": 4, "mscale": 2.0, "mscale_all_dim": 1}, "yarn, factor 4 beyond 8 tokens"),
        ({"rope_type": "linear", "factor": 2.5}, "linear, factor 2.5"),
    ],
    ids=["llama3", "yarn", "linear"],
)
@pytest.mark.parametrize("name", published.FORMATS)
def test_a_head_with_a_scaled_rope_is_trained_saved_and_published_with_it(
    name: str, rope_scaling: dict[str, Any], described: str, model: TargetModel, tmp_path: Path
) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.FORMATS[name](draft, vocabulary.to_target, model)
    layer = config.get("transformer_layer_config", config)
    layer["rope_scaling"] = rope_scaling
    layer["max_position_embeddings"] = 8
    head = published.write(tmp_path / "head", (config, tensors))
    read = read_head(head, model).draft
    assert read.config == dataclasses.replace(draft.config, rope_scaling=read.config.rope_scaling)
    with torch.no_grad():
        assert (logits(read) - logits(draft)).abs().max() > 1e-4, "other frequencies"
    registry, _ = tiny.memory_registry()
    lineage.open_lineage(registry, model, DraftSpec(initial=head), lineage.utc_now)
    stored, _ = lineage.fetch_draft(registry, lineage.HEAD_VERSION, model)
    assert stored.config == read.config
    assert all(torch.equal(stored.state_dict()[tensor], weight) for tensor, weight in draft.state_dict().items())
    for head_format in HeadFormat:
        folder = tmp_path / head_format.value
        export_head(registry, lineage.HEAD_VERSION, folder, head_format, 3)
        exported = PublishedHead(model=str(folder))
        again = read_head(exported, model).draft
        assert again.config == read.config
        other, _ = tiny.memory_registry()
        lineage.open_lineage(other, model, DraftSpec(initial=exported), lineage.utc_now)
        digests = [each.registration(lineage.HEAD_VERSION).digest for each in (other, registry)]
        assert digests[0] == digests[1], "the same bytes"
        with torch.no_grad():
            assert torch.equal(logits(again), logits(read))
        assert described in (folder / "README.md").read_text()


def test_a_head_that_rotates_a_part_of_each_attention_head_is_read(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = published.trained_draft(model)
    config, tensors = published.specforge(draft, vocabulary.to_target, model)
    config["partial_rotary_factor"] = 0.5
    read = read_head(published.write(tmp_path / "head", (config, tensors)), model)
    assert read.draft.config == dataclasses.replace(draft.config, rotary_dim=draft.config.head_dim // 2)
