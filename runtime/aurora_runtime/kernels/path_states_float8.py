"""Packs traced hidden states in 8 bits on the GPU, so that half the bytes travel to the host.

Invariant: the bytes are those of :func:`aurora_runtime.packed_states.pack` on a CPU, which is the reference. (NaNs may
differ in their bits.) So the kernel computes with the bits of float32 numbers, and rounds to fp8 itself: a GPU divides,
and takes logarithms, only approximately, and an A100 has no conversion to fp8.

Never run on a GPU: tests run the kernel in Triton's interpreter, and compile it for sm_80 and sm_90.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from aurora_runtime.packed_states import PACKED_TYPE, SCALE_TYPE

BLOCK_ELEMENTS = 2048
"""Elements of a row that one step of a program handles."""
_INFINITY: Final = tl.constexpr(0x7F800000)
_LARGEST: Final = tl.constexpr(0x43E00000)
"""448, fp8's largest number, as the bits of a float32."""
_SMALLEST_MAXIMUM: Final = tl.constexpr(27 << 23)
"""2**-100: stands for the largest element of a row of zeros."""
_UPPER_HALF: Final = tl.constexpr(0x17FFFF)
"""Carries into the exponent where the fraction exceeds that of 464 = 1.8125 * 2**8, which still rounds to 448."""
_SMALLEST_NORMAL: Final = tl.constexpr(121 << 23)
"""2**-6, fp8's smallest number with a full mantissa."""
_SUBNORMAL_STEP: Final = tl.constexpr(141 << 23)
"""2**14: a float32 near it has the step of fp8's numbers below 2**-6, so that adding it rounds to that step."""


def pack_fused(states: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`aurora_runtime.packed_states.pack`: states ``[S, H3]``, whose rows are contiguous -> fp8 and scales."""
    if states.stride(1) != 1:
        states = states.contiguous()
    rows, width = states.shape
    codes = torch.empty(rows, width, dtype=torch.uint8, device=states.device)
    scale = torch.empty(rows, dtype=torch.int16, device=states.device)
    if rows:
        _pack[(rows,)](states, codes, scale, states.stride(0), width, BLOCK=BLOCK_ELEMENTS)
    return codes.view(PACKED_TYPE), scale.view(SCALE_TYPE)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pack(states, codes, scale, stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pack one row. It is read twice, the second time from the cache."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.full([], _SMALLEST_MAXIMUM, tl.int32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(states + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        # Without their signs, the bits of floats are ordered as the floats. A NaN comes last.
        largest = tl.maximum(largest, tl.max(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0))
    finite = largest < _INFINITY
    exponent = ((largest + tl.where(finite, _UPPER_HALF, 0)) >> 23) - 8  # biased, of the scale
    inverse = tl.where(finite, (254 - exponent) << 23, 0).to(tl.float32, bitcast=True)
    inverse = tl.where(largest > _INFINITY, largest.to(tl.float32, bitcast=True), inverse)
    bits = tl.where(finite, exponent << 7, tl.where(largest == _INFINITY, 0x7F80, 0x7FC0))
    tl.store(scale + row, bits.to(tl.int16))
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(states + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        tl.store(codes + row * width + at, _to_float8(value * inverse), mask=at < width)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _to_float8(value):  # type: ignore[no-untyped-def]
    """The code of each float32 in E4M3: rounded to the nearest, ties to even, and at most 448."""
    bits = value.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    bounded = tl.minimum(size, _LARGEST)
    shifted = bounded.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.int32, bitcast=True) - _SUBNORMAL_STEP
    odd = (bounded >> 20) & 1
    normal = (bounded - (120 << 23) + 0x7FFFF + odd) >> 20
    code = tl.where(bounded < _SMALLEST_NORMAL, subnormal, normal)
    code = tl.where(size > _INFINITY, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)
