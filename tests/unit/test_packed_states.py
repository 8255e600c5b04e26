"""States in 8 bits keep their size, and packing them again changes nothing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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


def test_rows_of_zeros_stay_zero_and_what_is_not_finite_stays_so() -> None:
    rows = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [448.0, -448.0]])
    zeros, infinite, nothing, largest = unpack(*pack(rows))
    assert zeros.tolist() == [0, 0]
    assert not infinite.isfinite().all()
    assert not nothing.isfinite().all()
    assert largest.tolist() == [448, -448]
