"""A draft's sizes follow from the target's ``config.json``. The fields are those of published models."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.models.target_config import read_target_config

PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, int, int, int, int]]] = {
    "Qwen3-8B": (
        {
            "hidden_size": 4096,
            "max_position_embeddings": 40960,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_hidden_layers": 36,
        },
        (12288, 32, 8, 128, 128),
    ),
    "MiniMax-M2": (
        {
            "hidden_size": 3072,
            "max_position_embeddings": 40960,
            "intermediate_size": 1536,
            "num_attention_heads": 48,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_hidden_layers": 62,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
            "rotary_dim": 64,
        },
        (12288, 48, 8, 128, 64),
    ),
    "Qwen3-Next-80B": (
        {
            "hidden_size": 2048,
            "max_position_embeddings": 40960,
            "intermediate_size": 5120,
            "moe_intermediate_size": 512,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "num_hidden_layers": 48,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "partial_rotary_factor": 0.25,
        },
        (5120, 16, 2, 256, 64),
    ),
    "DeepSeek V3": (
        {
            "hidden_size": 7168,
            "max_position_embeddings": 40960,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "num_hidden_layers": 61,
            "kv_lora_rank": 512,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
        },
        (18432, 56, 8, 128, 128),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_draft_has_the_sizes_of_the_part_that_every_token_passes(name: str) -> None:
    fields, expected = PUBLISHED[name]
    for raw in (fields, {"text_config": fields}):
        c = read_target_config(raw, name)
        assert (c.intermediate_size, c.heads, c.kv_heads, c.head_dim, c.rotary_dim) == expected


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
@pytest.mark.parametrize("value", [None, 0, 1 << 40, "64", True])
def test_an_unusable_field_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(TargetUnavailable, match=f"some/model: config.json has no usable {field}"):
        read_target_config(PUBLISHED["Qwen3-8B"][0] | {field: value}, "some/model")


def test_the_rope_of_full_attention_counts_where_layers_differ() -> None:
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert read_target_config(PUBLISHED["Qwen3-8B"][0] | {"rope_parameters": rope}, "x").rope_theta == 1e6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", "small"),
        ("rope_theta", [1e4]),
        ("partial_rotary_factor", 2.0),
        ("rotary_dim", 7),
    ],
)
def test_an_unusable_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(TargetUnavailable, match=r"some/model: config\.json has no usable"):
        read_target_config(PUBLISHED["Qwen3-8B"][0] | {field: value}, "some/model")


GEMMA_3_27B = {"model_type": "gemma3_text", "max_position_embeddings": None}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 40_960),
        ({"seq_length": 8192}, 8192),
        ({"max_position_embeddings": None, "model_max_length": 16_384}, 16_384),
        ({"model_max_length": 16_384, "max_sequence_length": 2048}, 2048),
        (GEMMA_3_27B, 131_072),
    ],
)
def test_the_longest_sequence_is_the_one_that_sglang_finds(fields: dict[str, Any], expected: int) -> None:
    assert read_target_config(PUBLISHED["Qwen3-8B"][0] | fields, "x").max_positions == expected


@pytest.mark.parametrize("fields", [{}, {"model_type": "of-nobody"}, {"seq_length": "long"}])
def test_a_config_without_a_longest_sequence_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TargetUnavailable, match=r"no usable (max_position_embeddings|seq_length)"):
        read_target_config(PUBLISHED["Qwen3-8B"][0] | {"max_position_embeddings": None} | fields, "some/model")


LLAMA_31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": {"rope_type": "llama3", **LLAMA_31}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_31}},
        {"rope_parameters": {"full_attention": {"rope_type": "llama3", **LLAMA_31}, "sliding_attention": {}}},
    ],
)
def test_the_scaling_of_the_rope_is_read(fields: dict[str, Any]) -> None:
    scaling = read_target_config(PUBLISHED["Qwen3-8B"][0] | fields, "x").rope_scaling
    assert scaling is not None
    assert {name: getattr(scaling, name) for name in LLAMA_31} == LLAMA_31


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "mrope", "mrope_section": [16, 24, 24]},
        {"type": "yarn", "factor": 40, "attention_factor": 1.0},
        {"type": "linear", "factor": "2"},
        "linear",
    ],
)
def test_a_scaling_that_no_draft_can_have_is_left_out(scaling: object) -> None:
    assert read_target_config(PUBLISHED["Qwen3-8B"][0] | {"rope_scaling": scaling}, "x").rope_scaling is None


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        ({"rope_type": "dynamic", "factor": 6.0}, 6),
        ({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 4096}, 1),
        ({"type": "linear", "factor": 2.0}, 1),
        ({"type": "dynamic", "factor": "2"}, 1),
    ],
)
def test_a_draft_is_as_long_as_sglang_makes_its_target(scaling: dict[str, Any], factor: int) -> None:
    plain = PUBLISHED["Qwen3-8B"][0]
    longest = read_target_config(plain, "x").max_positions
    assert read_target_config(plain | {"rope_scaling": scaling}, "x").max_positions == longest * factor
