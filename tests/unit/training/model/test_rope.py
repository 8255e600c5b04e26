"""A draft rotates as transformers and SGLang do, who read its saved config: with and without scaling."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from aurora_runtime.engine.draft_config import DraftConfig, config_from_json, config_json
from aurora_runtime.engine.draft_rope import read_rope_scaling
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.rope import Rope

LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"type": "linear", "factor": 2},
    "Llama 3.1": LLAMA_31,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn with other bounds": {"rope_type": "yarn", "factor": 40, "beta_fast": 16, "beta_slow": 2, "truncate": True},
    "yarn without rounding": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
    "yarn of DeepSeek V3": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn with a stretch": {"type": "yarn", "factor": 16.0, "mscale": 1.5, "mscale_all_dim": 0.5},
    "yarn with its own stretch": {"type": "yarn", "factor": 4.0, "attention_factor": 1.1386},
}


def config_of(
    scaling: dict[str, Any], *, theta: float = 500_000.0, head_dim: int = 128, max_positions: int = 131_072
) -> DraftConfig:
    read = read_rope_scaling(scaling, theta, 4096)
    sizes = (64, 96, 4, 2, head_dim, head_dim, 400, 300)
    return DraftConfig(*sizes, 1e-5, theta, max_positions, (1, 3, 4), rope_scaling=read)


@torch.no_grad()
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_queries_and_keys_are_rotated_as_transformers_rotates_them_by_the_saved_config(scaling: dict[str, Any]) -> None:
    config = config_of(scaling)
    saved = json.loads(json.dumps(config_json(config)))
    assert config_from_json(saved) == config
    torch.manual_seed(1)
    draft = DraftModel(config, torch.empty(400, 64))
    inputs, positions = torch.randn(1, 7, 128), torch.tensor([[0, 1, 2, 900, 8191, 40_000, 131_000]])
    unrotated = (
        projection(inputs).view(1, 7, -1, 128).transpose(1, 2)
        for projection in (draft.midlayer.self_attn.q_proj, draft.midlayer.self_attn.k_proj)
    )
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(**saved))(inputs, positions)
    queries, keys = apply_rotary_pos_emb(*unrotated, cos, sin)
    # At position 131,000 an angle's rounding in float32 is about 0.008.
    torch.testing.assert_close(draft.queries(inputs, positions), queries, atol=0.02, rtol=0.0)
    torch.testing.assert_close(draft.keys(inputs, positions), keys, atol=0.02, rtol=0.0)
    near = slice(0, 4)
    torch.testing.assert_close(draft.queries(inputs, positions)[:, :, near], queries[:, :, near], atol=2e-4, rtol=0.0)


@st.composite
def scalings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["linear", "llama3", "yarn"]))
    scaling: dict[str, Any] = {"rope_type": kind, "factor": draw(st.floats(1.0, 64.0))}
    if kind != "linear":
        scaling["original_max_position_embeddings"] = draw(st.integers(64, 1 << 17))
    if kind == "llama3":
        low = scaling["low_freq_factor"] = draw(st.floats(0.5, 8.0))
        scaling["high_freq_factor"] = low + draw(st.floats(0.5, 8.0))
    if kind == "yarn":
        scaling |= {"beta_fast": draw(st.floats(8.0, 64.0)), "beta_slow": draw(st.floats(0.5, 4.0))}
        scaling["truncate"] = draw(st.booleans())
        if draw(st.booleans()):
            scaling |= {name: draw(st.floats(0.1, 4.0)) for name in ("mscale", "mscale_all_dim")}
    return scaling


@given(scalings(), st.floats(1e3, 1e7), st.sampled_from([16, 64, 80, 128]))
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], theta: float, head_dim: int) -> None:
    config = config_of(scaling, theta=theta, head_dim=head_dim)
    rope = Rope.of(config)
    frequencies, stretch = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](LlamaConfig(**config_json(config)))
    torch.testing.assert_close(rope.frequencies, frequencies, rtol=2e-5, atol=0.0)
    assert rope.stretch == pytest.approx(stretch)


def test_the_original_length_is_the_models_where_nothing_names_it_and_one_outside_overrides() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    for inside, outside, expected in ((None, None, 4096), (2048, None, 2048), (2048, 1024, 1024)):
        named = {} if inside is None else {"original_max_position_embeddings": inside}
        read = read_rope_scaling(yarn | named, 1e4, 4096, outside)
        assert read is not None
        assert read.original_max_position_embeddings == expected
