"""Weights that a checkpoint stores as fp8 or int8 with scales, as bf16. Pure.

Why: a draft is never quantised, and an fp8 number without its scale is wrong by a factor of thousands.

Two formats name their scales differently (read on 2026-11-28): Hugging Face's ``fp8`` has ``weight_scale_inv``, one
factor per block of the weight. ``compressed-tensors`` and ModelOpt have ``weight_scale``, one factor per tensor, per
row or per block. Both names hold the factor that the stored number is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch import Tensor

FLOAT_TYPES: Final = (torch.bfloat16, torch.float16)
"""Types that are kept as stored."""
_SCALED_TYPES: Final = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
SCALE_SUFFIXES: Final = ("_scale_inv", "_scale")
"""What follows a weight's name in the name of its scale."""
ZERO_POINT_SUFFIX: Final = "_zero_point"
"""The end of the name of a weight's zero points, which are subtracted from the weight's numbers before scaling."""


def weight_block(config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share one scale, as ``config.json`` states them. None: no blocks."""
    quantisation = _object(config, "quantization_config")
    groups = _object(quantisation, "config_groups")
    blocks = [quantisation.get("weight_block_size")]
    blocks += [_object(_object(groups, name), "weights").get("block_structure") for name in groups]
    for block in blocks:
        if isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block):
            return block[0], block[1]
    return None


def _object(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def dequantised(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> Tensor:
    """``weight`` ``[out, in]`` times its scale, as bf16.

    ``scale`` is one number, one per row (``[out]`` or ``[out, 1]``), or one per block (``[out/rows, in/columns]``,
    rounded up). Raises :class:`ValueError` for any other shape, and for scales that are integers (MXFP8's exponents).
    """
    if not scale.is_floating_point():
        raise ValueError(f"a scale of type {str(scale.dtype).removeprefix('torch.')}")
    factor = scale.float()
    rows, columns = weight.shape
    if factor.numel() == 1:
        factor = factor.reshape(1, 1)
    elif factor.shape in ((rows,), (rows, 1)):
        factor = factor.reshape(rows, 1)
    elif block is not None and factor.shape == (-(-rows // block[0]), -(-columns // block[1])):
        factor = factor.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    else:
        raise ValueError(f"a scale of shape {tuple(scale.shape)} for a weight of shape {tuple(weight.shape)}")
    return (weight.float() * factor).to(torch.bfloat16)


def read_weight(
    name: str, names: Collection[str], read: Callable[[str], Tensor], block: tuple[int, int] | None
) -> Tensor:
    """The tensor ``name`` in a float type, multiplied by its scale if the checkpoint stores one.

    ``names`` are the checkpoint's tensors, and ``read`` reads one. Raises :class:`ValueError` for a type that needs a
    scale and has none, for a type that is no number of its own (packed int4), and for a weight with zero points.
    """
    weight = read(name)
    if weight.dtype in FLOAT_TYPES:
        return weight
    if weight.dtype in (torch.float32, torch.float64):
        return weight.to(torch.bfloat16)
    scale_name = next((name + suffix for suffix in SCALE_SUFFIXES if name + suffix in names), None)
    kind = str(weight.dtype).removeprefix("torch.")
    if name + ZERO_POINT_SUFFIX in names:
        raise ValueError(f"the tensor {name} is stored as {kind} with zero points")
    if weight.dtype not in _SCALED_TYPES or scale_name is None or weight.dim() != 2:
        raise ValueError(f"the tensor {name} is stored as {kind}, which cannot be read without its scale")
    try:
        return dequantised(weight, read(scale_name), block)
    except ValueError as error:
        raise ValueError(f"the tensor {name} is stored as {kind} with {error}") from error
