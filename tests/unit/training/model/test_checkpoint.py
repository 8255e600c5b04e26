"""A checkpoint has the format that SGLang loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny


def test_the_checkpoint_is_what_sglang_loads(model: TargetModel, tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(model)
    exported = checkpoint.export(draft, vocabulary.to_target, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    h, v = tiny.HIDDEN, tiny.DRAFT_VOCAB
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
    assert {n: tuple(t.shape) for n, t in tensors.items()} == {
        "fc.weight": (h, 3 * h),
        "midlayer.hidden_norm.weight": (h,),
        "midlayer.input_layernorm.weight": (h,),
        "midlayer.post_attention_layernorm.weight": (h,),
        "midlayer.self_attn.q_proj.weight": (32, 2 * h),
        "midlayer.self_attn.k_proj.weight": (16, 2 * h),
        "midlayer.self_attn.v_proj.weight": (16, 2 * h),
        "midlayer.self_attn.o_proj.weight": (h, 32),
        "midlayer.mlp.gate_proj.weight": (48, h),
        "midlayer.mlp.up_proj.weight": (48, h),
        "midlayer.mlp.down_proj.weight": (h, 48),
        "norm.weight": (h,),
        "lm_head.weight": (v, h),
        "d2t": (v,),
        "t2d": (tiny.VOCAB,),
    }
    assert {n: (t.shape, t.dtype) for n, t in exported.tensors.items()}["d2t"] == ((v,), "I64")
    assert (tensors["d2t"] + torch.arange(v)).tolist() == vocabulary.to_target.tolist()
    assert int(tensors["t2d"].sum()) == v
    assert all((tmp_path / "out" / f.name).stat().st_mode & 0o777 == 0o644 for f in exported.files)
    again, ids = checkpoint.load(tmp_path / "out", model.embedding)
    assert ids.tolist() == vocabulary.to_target.tolist()
    assert checkpoint.export(again, ids, tmp_path / "twice").digest == exported.digest
    assert again.config == draft.config
