"""States in 8 bits keep their size, and packing them again changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime import packed_states
from aurora_runtime.packed_states import pack, unpack


def states(seed: int, rows: int, width: int, spread: float, outlier: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator) * spread
    values[:, 0] *= outlier
    return values.to(torch.bfloat16)


rows_of_states = st.builds(
    states,
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.integers(1, 70),
    st.sampled_from([1e-6, 0.02, 1.0, 300.0, 1e6]),
    st.sampled_from([0.0, 1.0, 1000.0]),
)


@given(rows_of_states)
def test_an_element_keeps_three_bits_of_its_mantissa(original: Tensor) -> None:
    codes, scale = pack(original)
    error = (unpack(codes, scale).float() - original.float()).abs()
    smallest = scale.float()[:, None] * 2**-9  # fp8's smallest step
    assert bool((error <= torch.maximum(original.float().abs() / 16, smallest / 2)).all())
    assert codes.element_size() == 1


@given(rows_of_states)
def test_packing_again_gives_the_same_bytes(original: Tensor) -> None:
    first = pack(original)
    second = pack(unpack(*first))
    assert torch.equal(first[0].view(torch.uint8), second[0].view(torch.uint8))
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("elements", [1, 70, 150, 700])  # less than a row, one row, two rows, and a last part
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_give_the_bytes_of_one_block_and_leave_the_states_alone(
    elements: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = states(1, 37, 70, 1.0, 1000.0).to(dtype)
    before, whole = original.clone(), pack(original)
    monkeypatch.setattr(packed_states, "_BLOCK_ELEMENTS", elements)
    parts = pack(original)
    assert torch.equal(whole[0].view(torch.uint8), parts[0].view(torch.uint8))
    assert torch.equal(whole[1], parts[1])
    assert torch.equal(original, before)
    assert pack(original[:0])[0].shape == (0, 70)


def test_rows_of_zeros_stay_zero_and_what_is_not_finite_stays_so() -> None:
    rows = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [448.0, -448.0]])
    zeros, infinite, nothing, largest = unpack(*pack(rows))
    assert zeros.tolist() == [0, 0]
    assert not infinite.isfinite().all()
    assert not nothing.isfinite().all()
    assert largest.tolist() == [448, -448]
