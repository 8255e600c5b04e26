"""A tiny checkpoint of each family of targets, with the family's real traits, as transformers writes it.

Weights are random, and norms are far from one, so that a copy which forgets a norm or an offset shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

HIDDEN, LAYERS, VOCAB = 64, 4, 320
_SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 319,
    "bos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS: Final[dict[str, Any]] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_BLOCK: Final = 32
"""Rows and columns of a block that shares one fp8 scale. Published checkpoints have 128."""
_LAYER_WEIGHTS: Final = ("_proj.weight", "_a_proj_with_mqa.weight")


@dataclass(frozen=True)
class TinyTarget:
    """One checkpoint: the family's model, its configuration, and the formats in which the family is published.

    ``published`` holds fields of published configurations that SGLang reads and transformers does not write.
    """

    name: str
    model: str
    config: str
    fields: dict[str, Any]
    formats: tuple[str, ...] = ("bf16",)
    published: dict[str, Any] = field(default_factory=dict)


TINY_TARGETS: Final = (
    TinyTarget(
        "Llama 3",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        ("bf16", "fp8", "int8"),
    ),
    TinyTarget("Qwen2.5", "Qwen2ForCausalLM", "Qwen2Config", {}),
    TinyTarget("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", {}, ("bf16", "fp8", "int8")),
    TinyTarget("Qwen3-MoE", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {"num_experts": 4, **_EXPERTS}, ("bf16", "fp8")),
    TinyTarget(
        "Qwen3-Next",
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "partial_rotary_factor": 0.25,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            **_EXPERTS,
        },
        ("bf16", "fp8"),
        {"full_attention_interval": 4},
    ),
    TinyTarget(
        "MiniMax-M2",
        "MiniMaxM2ForCausalLM",
        "MiniMaxM2Config",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8, "scoring_func": "sigmoid"},
        ("bf16", "fp8"),
    ),
    TinyTarget(
        "DeepSeek V3",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "head_dim": 8,
            "v_head_dim": 16,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 2.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 128,
            },
            **_EXPERTS,
        },
        ("bf16", "fp8"),
        {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    TinyTarget("gpt-oss", "GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    TinyTarget(
        "GLM-4.5",
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "use_qk_norm": True,
            "partial_rotary_factor": 0.5,
            **_EXPERTS,
        },
        ("bf16", "fp8"),
    ),
    TinyTarget("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", {}),
)


def write_tiny_target(
    tiny: TinyTarget, folder: Path, stored: str = "bf16", **fields: Any
) -> transformers.PreTrainedModel:
    """Write ``tiny`` into ``folder``, ``stored`` as bf16, fp8 or int8; returns the model that has just these weights.

    ``fields`` change the configuration. The returned model computes in float32.
    """
    torch.manual_seed(11)
    config = getattr(transformers, tiny.config)(**(_SIZES | tiny.fields | fields))
    model = getattr(transformers, tiny.model)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _randomise(name, parameter)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    _add_to_config(folder, tiny.published)
    model = model.to(torch.float32)
    if stored != "bf16":
        model.load_state_dict(_store_quantised(folder, stored), strict=False)
    return model


def _randomise(name: str, parameter: Tensor) -> None:
    """Norms and biases of about the size that trained models have; other weights keep a layer's output in scale."""
    if parameter.dim() == 1:
        parameter.copy_(torch.rand_like(parameter) + 0.25)
    elif "embed_tokens" in name:
        parameter.normal_()
    else:
        parameter.normal_(0, parameter.shape[-1] ** -0.5)


def _store_quantised(folder: Path, stored: str) -> dict[str, Tensor]:
    """Replace the layers' projections in ``folder`` by quantised ones; returns them dequantised, in float32."""
    path, quantise = folder / "model.safetensors", _QUANTISERS[stored]
    tensors, rounded = load_file(path), dict[str, Tensor]()
    for name in [n for n in tensors if n.endswith(_LAYER_WEIGHTS) and tensors[n].dim() == 2 and ".experts." not in n]:
        tensors[name], suffix, scale, rounded[name] = quantise(tensors[name].float())
        tensors[name + suffix] = scale
    save_file(tensors, path, {"format": "pt"})
    quantised = {"quant_method": stored, "weight_block_size": [_BLOCK, _BLOCK]}
    _add_to_config(folder, {"quantization_config": quantised})
    return rounded


def _add_to_config(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _fp8(weight: Tensor) -> tuple[Tensor, str, Tensor, Tensor]:
    """Hugging Face's fp8: one factor per block. Blocks at the edges are smaller."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % _BLOCK, 0, -rows % _BLOCK))
    blocks = padded.view(padded.shape[0] // _BLOCK, _BLOCK, padded.shape[1] // _BLOCK, _BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    rounded = (stored.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
    return stored.flatten(2).flatten(0, 1)[:rows, :columns].contiguous(), "_scale_inv", scale, rounded


def _int8(weight: Tensor) -> tuple[Tensor, str, Tensor, Tensor]:
    """compressed-tensors' int8: one factor per row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return stored, "_scale", scale.to(torch.bfloat16), stored.float() * scale.to(torch.bfloat16).float()


_QUANTISERS: Final[dict[str, Callable[[Tensor], tuple[Tensor, str, Tensor, Tensor]]]] = {"fp8": _fp8, "int8": _int8}
