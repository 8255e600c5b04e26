"""Writes a draft as others publish EAGLE-3 heads: in the formats of SpecForge, of SGLang and of vLLM's speculators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny

Head = tuple[dict[str, Any], dict[str, Tensor]]
"""The fields of ``config.json``, and the tensors."""


def trained_draft(model: TargetModel) -> tuple[DraftModel, VocabularyMap]:
    """A draft that differs from the initial one in every weight, with a map that leaves out low ids. Weights are
    representable in bf16, as published ones are."""
    ids = torch.cat([torch.arange(0, 200), torch.arange(300, 400)])
    draft, _ = tiny.draft_of(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.copy_((parameter + noise).to(torch.bfloat16))
    return draft, VocabularyMap.of(ids, tiny.VOCAB)


def weights_of(draft: DraftModel) -> dict[str, Tensor]:
    return {name: tensor.detach().to(torch.bfloat16).clone() for name, tensor in draft.state_dict().items()}


def offsets(ids: Tensor) -> Tensor:
    return ids - torch.arange(ids.numel())


def mask(ids: Tensor, vocab_size: int = tiny.VOCAB) -> Tensor:
    return torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, ids, True)


def llama_fields(config: DraftConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": 2048,
        "num_attention_heads": config.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }


def specforge(draft: DraftModel, ids: Tensor, model: TargetModel) -> Head:
    """As SpecForge saves a head: no ``eagle_config``, no embedding, offsets and mask."""
    config = llama_fields(draft.config) | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "pretraining_tp": 1,
        "draft_vocab_size": ids.numel(),
    }
    return config, weights_of(draft) | {"d2t": offsets(ids), "t2d": mask(ids, draft.config.vocab_size)}


def sglang(draft: DraftModel, ids: Tensor, model: TargetModel) -> Head:
    """As others publish for SGLang: ``layers.0``, layers named in ``eagle_config``, fp32, ids without a mask."""
    config, _ = specforge(draft, ids, model)
    layers = list(draft.config.aux_layers)
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": layers, "use_aux_hidden_state": True}
    renamed = {name.replace("midlayer.", "layers.0."): t for name, t in weights_of(draft).items()}
    return config, {name: t.float() for name, t in renamed.items()} | {"d2t": ids}


def speculators(draft: DraftModel, ids: Tensor, model: TargetModel) -> Head:
    """As vLLM's speculators save a head: layers named by their inputs, and a copy of the target's embedding."""
    config = {
        "architectures": ["Eagle3DraftModel"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "draft_vocab_size": ids.numel(),
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in draft.config.aux_layers],
        "norm_before_residual": False,
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "somebody/target"}},
        "speculators_model_type": "eagle3",
        "target_hidden_size": None,
        "transformer_layer_config": llama_fields(draft.config),
        "transformers_version": "4.57.1",
    }
    tensors = {name.replace("midlayer.", "layers.0."): t for name, t in weights_of(draft).items()}
    tensors |= {"embed_tokens.weight": model.embedding.float()}
    return config, tensors | {"d2t": offsets(ids), "t2d": mask(ids, draft.config.vocab_size)}


Format = Callable[[DraftModel, Tensor, TargetModel], Head]
FORMATS: dict[str, Format] = {"SpecForge": specforge, "SGLang": sglang, "speculators": speculators}


def write(folder: Path, head: Head) -> PublishedHead:
    config, tensors = head
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return PublishedHead(model=str(folder))


def in_two_files(folder: Path) -> None:
    """Split the weights in ``folder`` as Hugging Face splits large ones."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
