"""Compares the bytes of the fused packing with those of its torch reference, in Triton's interpreter.

Run it as a program of its own with ``TRITON_INTERPRET=1``. It ends with an error where the two differ.
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.kernels import path_states_float8
from aurora_runtime.kernels.path_states_float8 import pack_fused
from aurora_runtime.packed_states import pack
from tests.example_count import example_count

BLOCK_ELEMENTS = 16
"""So small that a row has several blocks."""


def assert_the_same_bytes(states: Tensor) -> None:
    (codes, scale), (expected, expected_scale) = pack_fused(states), pack(states)
    mine, theirs = codes.view(torch.uint8), expected.view(torch.uint8)
    nan = (theirs & 0x7F) == 0x7F
    assert torch.equal(mine.masked_fill(nan, 0), theirs.masked_fill(nan, 0)), states
    assert bool(((mine & 0x7F) == 0x7F).eq(nan).all())
    assert torch.equal(scale.isnan(), expected_scale.isnan())
    assert torch.equal(scale.nan_to_num(0).view(torch.int16), expected_scale.nan_to_num(0).view(torch.int16)), states


@settings(max_examples=example_count(60), deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1e-39, 1e-20, 1e-6, 0.02, 1.0, 300.0, 1e6, 1e37]),
    st.sampled_from([0.0, 1.0, 1000.0]),
    st.integers(0, 10_000),
)
def compare_random(rows: int, width: int, dtype: torch.dtype, spread: float, outlier: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width + 3, generator=generator) * spread
    values[:, 0] *= outlier
    assert_the_same_bytes(values.to(dtype)[:, :width])  # a view, whose rows lie apart


@settings(max_examples=example_count(60), deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def compare_any_floats(row: list[float]) -> None:
    assert_the_same_bytes(torch.tensor([row]))


def compare_every_bfloat16() -> None:
    """Each bf16 number beside 448, where the scale is 1, and each exponent as the largest of a row."""
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    beside_448 = torch.cat([numbers.new_tensor([448.0]), numbers[numbers.abs() <= 448]])[None]
    with patch.object(path_states_float8, "BLOCK_ELEMENTS", 1 << 16):  # the interpreter takes as long for each block
        assert_the_same_bytes(beside_448)
    assert_the_same_bytes(numbers[::127, None])
    # fp8's ties and the numbers at which the scale changes, with their neighbours
    edges = torch.tensor([224.0, 232.0, 240.0, 447.99997, 448.0, 464.0, 464.00003, 2.0**-9, 2.0**-10, 3 * 2.0**-10])
    rows = torch.stack([edges * 2.0**shift for shift in (-30, 0, 1, 40)])
    assert_the_same_bytes(rows.reshape(-1, 1))
    assert_the_same_bytes(rows)


if __name__ == "__main__":
    path_states_float8.BLOCK_ELEMENTS = BLOCK_ELEMENTS
    compare_random()
    compare_any_floats()
    compare_every_bfloat16()
