"""A sublayer of the target's last layer that a draft cannot have is left out, and the target is read all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.errors import TargetUnavailable
from aurora_runtime.training.model.initial_draft import draft_config, initial_draft
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.unit.training import tiny

LAYER = f"model.layers.{tiny.LAYERS - 1}."
ATTENTION, FEED_FORWARD = "self_attn.", "mlp."


def nvfp4(name: str, weight: Tensor) -> dict[str, Tensor]:
    """ModelOpt: two numbers a byte, a scale for 16 columns, and a second one for all."""
    rows, columns = weight.shape
    return {
        name: torch.ones(rows, columns // 2, dtype=torch.uint8),
        f"{name}_scale": torch.ones(rows, columns // 16).to(torch.float8_e4m3fn),
        f"{name}_scale_2": torch.tensor(1.0),
        name.replace(".weight", ".input_scale"): torch.tensor(1.0),
    }


def mxfp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    """One exponent for 8 columns."""
    rows, columns = weight.shape
    return {
        name: weight.to(torch.float8_e4m3fn),
        f"{name}_scale": torch.full((rows, columns // 8), 127, dtype=torch.uint8),
    }


def int8_groups(name: str, weight: Tensor) -> dict[str, Tensor]:
    """One scale for 16 columns."""
    rows, columns = weight.shape
    return {name: torch.ones(rows, columns, dtype=torch.int8), f"{name}_scale": torch.ones(rows, columns // 16)}


def int8_with_zero_points(name: str, weight: Tensor) -> dict[str, Tensor]:
    rows, columns = weight.shape
    return {
        name: torch.ones(rows, columns, dtype=torch.int8),
        f"{name}_scale": torch.ones(rows, 1),
        f"{name}_zero_point": torch.ones(rows, 1, dtype=torch.int8),
    }


def biased(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: weight, name.replace(".weight", ".bias"): torch.ones(weight.shape[0])}


def narrower(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: weight[:, :-8].contiguous()}


def change(
    folder: Path, matches: Callable[[str], bool], stored: Callable[[str, Tensor], dict[str, Tensor]], **config: Any
) -> TargetSpec:
    """Store the matching weights of a tiny target in another form. ``config`` changes its ``config.json``."""
    spec = tiny.write_target(folder, tied=False)
    tensors = dict[str, Tensor]()
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= stored(name, tensor) if matches(name) else {name: tensor}
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return spec


def notes(target: TargetModel) -> tuple[str, str]:
    return target.last_layer.attention, target.last_layer.feed_forward


@pytest.mark.parametrize("sublayer", [ATTENTION, FEED_FORWARD])
@pytest.mark.parametrize(
    "stored",
    [nvfp4, mxfp8, int8_groups, int8_with_zero_points, biased, narrower],
    ids=lambda f: f.__name__,
)
def test_a_sublayer_in_another_form_is_not_copied_and_the_other_one_is(
    stored: Callable[[str, Tensor], dict[str, Tensor]], sublayer: str, tmp_path: Path
) -> None:
    blocks = {"quantization_config": {"weight_block_size": [1, 8]}} if stored is mxfp8 else {}
    target = load_target(change(tmp_path, lambda name: name.startswith(LAYER + sublayer), stored, **blocks))
    changed, kept = notes(target) if sublayer == ATTENTION else notes(target)[::-1]
    assert (changed != "copied", kept) == (True, "copied")
    assert target.last_layer.tensors
    assert not any(name.startswith(sublayer) for name in target.last_layer.tensors)
    initial_draft(target, draft_config(target, tiny.DRAFT_VOCAB), torch.arange(tiny.DRAFT_VOCAB))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize(("stored", "form"), [(nvfp4, "uint8"), (int8_with_zero_points, "int8 with zero points")])
def test_a_head_or_an_embedding_that_cannot_be_read_is_refused_by_its_name(
    name: str, stored: Callable[[str, Tensor], dict[str, Tensor]], form: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetUnavailable, match=f"tensor {name} is stored as {form}"):
        load_target(change(tmp_path, lambda other: other == name, stored))


def test_the_attention_of_llama_4_is_not_copied_although_its_tensors_have_the_names_of_llamas(tmp_path: Path) -> None:
    spec = change(tmp_path, lambda _: False, biased, architectures=["Llama4ForCausalLM"])
    attention, feed_forward = notes(load_target(spec))
    assert attention.startswith("not copied, because Llama 4 rotates queries and keys in another way")
    assert feed_forward == "copied"
