"""Untrained EAGLE-3 drafts in SGLang's format, for tests of the engine: a random one, and one that repeats a token.

The vocabulary of both is the target's first ids, with offsets of zero. Any two of these drafts may therefore replace
each other in a running server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aurora_runtime.engine.draft_config import DraftConfig, config_json

DRAFT_VOCABULARY = 16384
REPEATING_TEXT = "pi = 3." + "3" * 39
"""SmolLM2-135M continues this text with threes for at least 48 tokens. It soon leaves most other repetitions."""


def write_random_draft(
    directory: Path, target: Path, *, seed: int = 0, draft_vocabulary: int = DRAFT_VOCABULARY, scale: float = 0.02
) -> Path:
    """Write `config.json` and `model.safetensors` of a random draft for the model in `target`. Returns `directory`.

    Args:
        scale: Standard deviation of the random matrices.
    """
    import torch
    from safetensors.torch import save_file

    target_config = json.loads((target / "config.json").read_text())
    hidden, inner = target_config["hidden_size"], target_config["intermediate_size"]
    head = _head_size(target_config)
    heads, kv_heads = target_config["num_attention_heads"], target_config["num_key_value_heads"]
    vocabulary = target_config["vocab_size"]
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * scale).to(torch.bfloat16)

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    names = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    tensors = {f"midlayer.{name}.weight": ones() for name in names}
    tensors |= {
        "norm.weight": ones(),
        "fc.weight": matrix(hidden, 3 * hidden),
        "midlayer.self_attn.q_proj.weight": matrix(heads * head, 2 * hidden),
        "midlayer.self_attn.k_proj.weight": matrix(kv_heads * head, 2 * hidden),
        "midlayer.self_attn.v_proj.weight": matrix(kv_heads * head, 2 * hidden),
        "midlayer.self_attn.o_proj.weight": matrix(hidden, heads * head),
        "midlayer.mlp.gate_proj.weight": matrix(inner, hidden),
        "midlayer.mlp.up_proj.weight": matrix(inner, hidden),
        "midlayer.mlp.down_proj.weight": matrix(hidden, inner),
        "lm_head.weight": matrix(draft_vocabulary, hidden),
        "d2t": torch.zeros(draft_vocabulary, dtype=torch.int64),
        "t2d": torch.arange(vocabulary) < draft_vocabulary,
    }
    config = _config(target_config, draft_vocabulary)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _config(target_config: dict[str, Any], draft_vocabulary: int) -> dict[str, Any]:
    """The draft's `config.json`: the target's sizes, with one layer."""
    rope = target_config.get("rope_parameters") or {}
    return config_json(
        DraftConfig(
            hidden_size=target_config["hidden_size"],
            intermediate_size=target_config["intermediate_size"],
            heads=target_config["num_attention_heads"],
            kv_heads=target_config["num_key_value_heads"],
            head_dim=_head_size(target_config),
            rotary_dim=_head_size(target_config),
            vocab_size=target_config["vocab_size"],
            draft_vocab_size=draft_vocabulary,
            rms_norm_eps=target_config["rms_norm_eps"],
            rope_theta=float(rope.get("rope_theta", target_config.get("rope_theta", 10000.0))),
            max_positions=target_config["max_position_embeddings"],
            aux_layers=aux_layers(target_config["num_hidden_layers"]),
        )
    )


def aux_layers(layers: int) -> tuple[int, int, int]:
    """The target layers whose outputs the drafts read: SGLang's default for a target of so many layers."""
    return (1, layers // 2 - 1, layers - 4)


def _head_size(target_config: dict[str, Any]) -> int:
    return int(target_config.get("head_dim") or target_config["hidden_size"] // target_config["num_attention_heads"])


def write_repeating_draft(directory: Path, target: Path, *, seed: int = 0) -> Path:
    """Write a draft that proposes the most frequent token so far. Returns `directory`.

    The draft's attention carries a projection of the embeddings, its head is the target's embedding matrix, and all
    other parts of the draft contribute zero. On text that repeats one token, all its proposals are accepted. A random
    draft's proposals never are. On other text the repeating draft is useless.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    write_random_draft(directory, target, seed=seed)
    tensors = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    with safe_open(target / "model.safetensors", "pt") as weights:
        embeddings = weights.get_tensor("model.embed_tokens.weight").float()
    generator = torch.Generator().manual_seed(seed)
    width = tensors["midlayer.self_attn.v_proj.weight"].shape[0]
    basis = torch.linalg.qr(torch.randn(hidden, width, generator=generator)).Q.T
    value = torch.cat((basis, torch.zeros(width, hidden)), 1)
    per_head = basis.view(kv_heads, -1, hidden).repeat_interleave(heads // kv_heads, dim=0)
    output = per_head.reshape(-1, hidden).T * (kv_heads / heads)
    head = torch.nn.functional.normalize(embeddings[: config["draft_vocab_size"]], dim=-1)
    tensors |= {
        "fc.weight": torch.zeros_like(tensors["fc.weight"]),
        "midlayer.self_attn.v_proj.weight": value.bfloat16(),
        "midlayer.self_attn.o_proj.weight": output.contiguous().bfloat16(),
        "midlayer.mlp.down_proj.weight": torch.zeros_like(tensors["midlayer.mlp.down_proj.weight"]),
        "lm_head.weight": head.bfloat16(),
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
