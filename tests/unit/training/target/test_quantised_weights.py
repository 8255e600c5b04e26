"""Quantised weights are read with their scales, in the shapes in which checkpoints store scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.training.target.quantised_weights import dequantised, read_weight, weight_block


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_each_weight_is_multiplied_by_the_scale_of_its_block(
    rows: int, columns: int, block_rows: int, block_columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)
    scale = torch.rand(-(-rows // block_rows), -(-columns // block_columns), generator=generator) + 0.1
    actual = dequantised(weight, scale, (block_rows, block_columns))
    if scale.numel() > 1 and scale.shape != (rows, 1):
        row, column = rows - 1, columns - 1
        expected = weight[row, column].float() * scale[row // block_rows, column // block_columns]
        assert actual[row, column] == expected.to(torch.bfloat16)
    assert actual.shape == weight.shape


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4,), (4, 1)])
def test_a_scale_may_hold_for_the_whole_weight_or_for_each_row(shape: tuple[int, ...]) -> None:
    weight = torch.ones(4, 6, dtype=torch.int8)
    scale = torch.arange(1, 5).float().reshape(shape) if shape and shape[0] == 4 else torch.full(shape, 3.0)
    assert torch.equal(dequantised(weight, scale, None), (weight * scale.reshape(-1, 1)).to(torch.bfloat16))


def test_a_scale_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale of shape \(3, 2\) for a weight of shape \(4, 6\)"):
        dequantised(torch.ones(4, 6, dtype=torch.int8), torch.ones(3, 2), None)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_a_quantised_weight_without_its_scale_is_refused(dtype: torch.dtype) -> None:
    stored = {"w.weight": torch.ones(4, 4).to(dtype)}
    with pytest.raises(ValueError, match=r"w\.weight is stored as .*without its scale"):
        read_weight("w.weight", stored, stored.__getitem__, None)


@pytest.mark.parametrize("suffix", ["_scale", "_scale_inv"])
def test_the_scale_is_found_by_both_of_its_names(suffix: str) -> None:
    stored: dict[str, Tensor] = {
        "w.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        f"w.weight{suffix}": torch.tensor([2.0]),
    }
    assert torch.equal(
        read_weight("w.weight", stored, stored.__getitem__, None), torch.full((4, 4), 2.0, dtype=torch.bfloat16)
    )


@pytest.mark.parametrize(
    ("config", "block"),
    [
        ({}, None),
        ({"quantization_config": {"weight_block_size": [128, 64]}}, (128, 64)),
        (
            {"quantization_config": {"config_groups": {"group_0": {"weights": {"block_structure": [128, 128]}}}}},
            (128, 128),
        ),
        ({"quantization_config": {"weight_block_size": [0, 64]}}, None),
        ({"quantization_config": [1]}, None),
        ({"quantization_config": {"config_groups": {"a": 1, "b": {"weights": [2]}}}}, None),
    ],
)
def test_the_size_of_blocks_is_read_from_the_config(config: dict[str, object], block: tuple[int, int] | None) -> None:
    assert weight_block(config) == block
