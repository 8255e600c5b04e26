"""Hidden states in 8 bits: half the bytes of a trace. Pure.

Each position has a scale of its own, a power of two, so that its largest element lies in the upper half of fp8's range.
The elements are E4M3 numbers (Micikevicius et al., arXiv 2209.05433): 3 bits of mantissa at every size, so a few very
large elements, as hidden states have them, do not cost the others their digits.

Invariant: packing what was unpacked gives the same bytes. So a shard that is written again, because a tag was erased
from it, loses nothing.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

PACKED_TYPE: Final = torch.float8_e4m3fn
SCALE_TYPE: Final = torch.bfloat16
_LARGEST: Final = 448.0
_BLOCK_ELEMENTS: Final = 1 << 20
"""Elements that a CPU packs at a time: 4 MiB in float32. Much larger intermediate tensors need new pages of memory at
each use."""
_SMALLEST_MAXIMUM: Final = 2.0**-100
"""Stands for the largest element of a row of zeros."""


def pack(states: Tensor) -> tuple[Tensor, Tensor]:
    """States ``[S, H3]`` as fp8 ``[S, H3]``, and the factor of each row ``[S]``."""
    if states.device.type != "cpu":
        return _pack_block(states)
    codes, scale = torch.empty(states.shape, dtype=PACKED_TYPE), torch.empty(states.shape[0], dtype=SCALE_TYPE)
    rows = max(1, _BLOCK_ELEMENTS // max(1, states.shape[1]))
    for start in range(0, states.shape[0], rows):
        block = slice(start, start + rows)
        codes[block], scale[block] = _pack_block(states[block])
    return codes, scale


def _pack_block(states: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`pack`, in one piece."""
    largest = states.abs().amax(-1).float().clamp(min=_SMALLEST_MAXIMUM)
    scale = (largest / _LARGEST).log2().ceil().exp2()
    rounded = (largest / scale).to(PACKED_TYPE).float()
    scale = torch.where(rounded <= _LARGEST / 2, scale / 2, scale)  # rounding left the upper half
    values = states.to(torch.float32, copy=True).div_(scale[:, None]).clamp_(-_LARGEST, _LARGEST)
    return values.to(PACKED_TYPE), scale.to(SCALE_TYPE)


def unpack(codes: Tensor, scale: Tensor) -> Tensor:
    """The inverse of :func:`pack`, as bf16 ``[..., H3]``, for ``scale`` ``[...]``."""
    return codes.to(torch.bfloat16) * scale[..., None]


def unpacked(states: Tensor, scale: Tensor) -> Tensor:
    """``states`` ``[..., H3]`` in 16 bits or more; ``scale`` ``[...]`` is read only where they are packed."""
    return unpack(states, scale) if states.dtype == PACKED_TYPE else states
