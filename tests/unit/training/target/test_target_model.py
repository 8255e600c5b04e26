"""The trainer reads few tensors of a target, and the errors of a target that it cannot read say what to do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.training.target.target_model import load_target


def test_the_error_for_a_missing_target_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"config\.json"):
        load_target(TargetSpec(model=str(tmp_path)))


def test_the_error_for_a_gated_model_names_hf_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("401", response=httpx.Response(401, request=httpx.Request("GET", "http://hub")))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(TargetUnavailable, match="set HF_TOKEN"):
        load_target(TargetSpec(model="meta/gated"))


def write_part_of_a_large_target(folder: Path) -> tuple[TargetSpec, set[str]]:
    """The files of a model of 229 billion parameters that a trainer needs, with few rows and columns.

    The index names every tensor of the whole model. Returns the names of the tensors in the files that exist.
    """
    hidden, vocab, layers, experts = 64, 50, 62, 256
    config = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rotary_dim": 8,
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "num_experts_per_tok": 8,
    }
    last = f"model.layers.{layers - 1}."
    q_rows, kv_rows = 64, 32
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        f"{last}input_layernorm.weight": (hidden,),
        f"{last}post_attention_layernorm.weight": (hidden,),
        f"{last}self_attn.q_proj.weight": (q_rows, hidden),
        f"{last}self_attn.k_proj.weight": (kv_rows, hidden),
        f"{last}self_attn.v_proj.weight": (kv_rows, hidden),
        f"{last}self_attn.o_proj.weight": (hidden, q_rows),
        f"{last}self_attn.q_norm.weight": (q_rows,),
        f"{last}self_attn.k_norm.weight": (kv_rows,),
    }
    index = {name: f"part-{number}.safetensors" for number, name in enumerate(shapes)}
    for layer, expert, matrix in itertools.product(range(layers), range(experts), ("w1", "w2", "w3")):
        for kind in ("weight", "weight_scale_inv"):
            index[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.{kind}"] = "absent.safetensors"
    for name, shape in shapes.items():
        save_file({name: torch.rand(shape).to(torch.bfloat16)}, folder / index[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return TargetSpec(model=str(folder)), set(shapes)


def test_the_experts_of_a_large_target_are_never_read(tmp_path: Path) -> None:
    spec, _ = write_part_of_a_large_target(tmp_path)  # the files of the experts do not exist
    target = load_target(spec)
    assert target.config.intermediate_size == 8 * 32
    assert target.last_layer.feed_forward == "not copied, because no expert sees all tokens"
    assert not any("expert" in name for name in target.last_layer.tensors)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/other.safetensors", "model.bin", 7])
def test_an_index_that_names_a_file_outside_the_model_is_refused(file: object, tmp_path: Path) -> None:
    spec, names = write_part_of_a_large_target(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(TargetUnavailable, match=r"weight_map of file names in the model's folder"):
        load_target(spec)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(TargetUnavailable, match=r"config\.json is not"):
        load_target(TargetSpec(model=str(tmp_path)))
