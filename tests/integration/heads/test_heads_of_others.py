"""Heads that speculators and SpecForge themselves save are imported, and speculators load what Aurora exports.

The two libraries are not in the locked environment. ``make test-slow SUITE=heads`` installs them beside it. The
tests fail where the libraries are missing, so that a green run proves something.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_runtime.training import lineage
from aurora_runtime.training.heads.head_export import HeadFormat, export_head
from aurora_runtime.training.heads.published_head import read_head
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny

IDS = torch.cat([torch.arange(0, 200), torch.arange(300, 400)])
STEPS = 3


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> TargetModel:
    return tiny.target(tmp_path / "target")


def library(name: str) -> Any:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.fail(f"{name} is not on the path: run `make test-slow SUITE=heads`")
    return importlib.import_module(name)


def llama_config(**more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=tiny.HIDDEN,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        vocab_size=tiny.VOCAB,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **more,
    )


def fill(head: Any) -> None:
    """Random weights, and the map :data:`IDS`."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.02)
    head.t2d.copy_(torch.zeros(tiny.VOCAB, dtype=torch.bool).index_fill_(0, IDS, True))
    head.d2t.copy_(IDS - torch.arange(IDS.numel()))


def require_imported(folder: Path, model: TargetModel, head: Any) -> None:
    imported = read_head(PublishedHead(model=str(folder)), model)
    assert imported.ids.tolist() == IDS.tolist()
    assert imported.draft.config.aux_layers == (1, 3, 4)
    theirs = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in head.state_dict().items()}
    for name, tensor in imported.draft.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_head_that_speculators_save_is_imported(model: TargetModel, tmp_path: Path) -> None:
    config = library("speculators.config")
    eagle3 = library("speculators.models.eagle3")
    greedy = library("speculators.proposals.greedy").GreedyTokenProposalConfig(speculative_tokens=STEPS)
    verifier = config.VerifierConfig(name_or_path=model.identity.model, architectures=["LlamaForCausalLM"])
    described = config.SpeculatorsConfig(
        algorithm="eagle3", proposal_methods=[greedy], default_proposal_method="greedy", verifier=verifier
    )
    head = eagle3.Eagle3DraftModel(
        eagle3.Eagle3SpeculatorConfig(
            transformer_layer_config=llama_config(),
            draft_vocab_size=IDS.numel(),
            eagle_aux_hidden_state_layer_ids=[2, 4, 5],
            speculators_config=described,
        )
    )
    fill(head)
    with torch.no_grad():
        head.embed_tokens.weight.copy_(model.embedding)
    head.save_pretrained(tmp_path / "head")
    require_imported(tmp_path / "head", model, head)


@pytest.mark.filterwarnings("ignore:flash_attn is not found:UserWarning")  # a GPU's attention
def test_a_head_that_specforge_saves_is_imported(model: TargetModel, tmp_path: Path) -> None:
    llama3_eagle = library("specforge.modeling.draft.llama3_eagle")
    config = llama_config(architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=IDS.numel())
    head = llama3_eagle.LlamaForCausalLMEagle3(config, attention_backend="sdpa")
    fill(head)
    # As specforge/export/to_sglang.py does.
    saved = {name: tensor for name, tensor in head.state_dict().items() if "embed" not in name}
    head.save_pretrained(tmp_path / "head", state_dict=saved)
    require_imported(tmp_path / "head", model, head)


@pytest.mark.parametrize("with_embedding", [False, True])
def test_speculators_load_an_exported_draft(model: TargetModel, tmp_path: Path, *, with_embedding: bool) -> None:
    eagle3 = library("speculators.models.eagle3")
    registry, _ = tiny.memory_registry()
    tiny.open_lineage(registry, model, tiny.ticking_clock())
    embedding = model.embedding if with_embedding else None
    export_head(registry, 0, tmp_path / "head", HeadFormat.SPECULATORS, STEPS, embedding)
    head = eagle3.Eagle3DraftModel.from_pretrained(str(tmp_path / "head"))
    draft, vocabulary = lineage.fetch_draft(registry, 0, model)
    loaded = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in head.state_dict().items()}
    for name, tensor in draft.state_dict().items():
        assert torch.equal(loaded[name].float(), tensor), name
    assert torch.equal(head.d2t + torch.arange(vocabulary.to_target.numel()), vocabulary.to_target)
    assert head.config.eagle_aux_hidden_state_layer_ids == [2, 4, 5]
    assert head.config.norm_before_residual is False
