"""An initial draft starts as the last layer of its target, for a tiny target of each family and format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.training.target.families import FAMILIES
from aurora_runtime.training.target.last_layer import fold_head_norm
from aurora_runtime.training.target.target_model import load_target
from tests.assets.copied_layers import initial_draft_of, layer_errors
from tests.assets.tiny_targets import TINY_TARGETS, TinyTarget, write_tiny_target
from tests.unit.training import tiny as tiny_trainer

NOTHING: Final = 1.0
"""The error of a sublayer that adds nothing to its input."""
SAME: Final = 0.005
"""Rounding of weights to bf16, once they are multiplied by their scale."""
LARGEST_ERRORS: Final = {
    "Llama 3": (SAME, SAME),  # with the long-context scaling of the rope
    "Qwen2.5": (NOTHING, SAME),  # biases
    "Qwen3": (0.1, SAME),
    "Qwen3-MoE": (0.1, NOTHING),
    "Qwen3-Next": (0.6, 0.9),  # gated heads; the shared expert is a part of the output
    "MiniMax-M2": (0.1, NOTHING),
    "DeepSeek V3": (NOTHING, 0.9),
    "gpt-oss": (NOTHING, NOTHING),
    "GLM-4.5": (NOTHING, 0.7),
    "Gemma 3": (NOTHING, NOTHING),
}
"""Largest errors of attention and feed-forward layer by target."""
CASES: Final = [
    pytest.param(tiny, stored, id=f"{tiny.name}-{stored}") for tiny in TINY_TARGETS for stored in tiny.formats
]


@pytest.mark.parametrize(("tiny", "stored"), CASES)
def test_the_initial_draft_computes_what_the_targets_last_layer_computes(
    tiny: TinyTarget, stored: str, tmp_path: Path
) -> None:
    model = write_tiny_target(tiny, tmp_path, stored)
    _, draft = initial_draft_of(tmp_path)
    errors = layer_errors(model, draft)
    attention, feed_forward = LARGEST_ERRORS[tiny.name]
    assert errors.attention <= attention
    assert errors.feed_forward <= feed_forward
    assert errors.head < 1e-4  # the final norm with its offset, and the head


@pytest.mark.parametrize("tiny", TINY_TARGETS, ids=lambda tiny: tiny.name)
def test_a_half_that_is_not_copied_adds_nothing(tiny: TinyTarget, tmp_path: Path) -> None:
    write_tiny_target(tiny, tmp_path)
    target, draft = initial_draft_of(tmp_path)
    layer = draft.midlayer
    for note, output in (
        (target.last_layer.attention, layer.self_attn.o_proj.weight),
        (target.last_layer.feed_forward, layer.mlp.down_proj.weight),
    ):
        assert note.startswith("not copied") == (not output.any())


def test_a_norm_of_wide_heads_moves_almost_exactly() -> None:
    """The mean square of a head concentrates with its width."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    projection, norm, input_norm = normal(256, 1024), normal(128).abs() + 0.5, normal(1024).abs() + 0.5
    states = normal(50, 1024) * input_norm
    heads = (states @ projection.T).view(50, 2, 128)
    expected = torch.nn.functional.rms_norm(heads, (128,), norm, 1e-6)
    actual = (states @ fold_head_norm(projection, norm, input_norm, 1e-6).T).view(50, 2, 128)
    assert (actual - expected).norm() / expected.norm() < 0.1


def test_no_lineage_begins_for_a_model_of_no_known_family_and_one_that_exists_goes_on(tmp_path: Path) -> None:
    spec = tiny_trainer.write_target(tmp_path)
    known = load_target(spec)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    unknown = load_target(spec)
    registry, _ = tiny_trainer.memory_registry()
    with pytest.raises(TargetUnavailable, match=r"names MambaForCausalLM, .* families: Llama, .*Gemma 3"):
        tiny_trainer.open_lineage(registry, unknown, tiny_trainer.ticking_clock())
    tiny_trainer.open_lineage(
        registry, dataclasses.replace(known, identity=unknown.identity), tiny_trainer.ticking_clock()
    )
    tiny_trainer.open_lineage(registry, unknown, tiny_trainer.ticking_clock())


def test_an_architecture_belongs_to_one_family() -> None:
    architectures = [name for family in FAMILIES for name in family.architectures]
    assert len(architectures) == len(set(architectures))
