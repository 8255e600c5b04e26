"""Linear layers on weights that oneDNN has laid out for itself, about twice as fast as plain ones on few rows.

The layout is a private second copy of the weight, in float32 where the CPU does not multiply bfloat16: products are
then summed in float32 and rounded once, as oneDNN does it elsewhere. Invariant: a copy is never used after its weight
changed. It is kept with the address of the weight that it was made from, and every way in which SGLang writes weights
calls `forget`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from aurora_runtime.precision import product_dtype

_ATTRIBUTE = "_aurora_packed"
_DTYPES = (torch.bfloat16, torch.float32)
_onednn: Any = torch.backends.mkldnn


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [N, K] in oneDNN's layout; `source` is the address of the plain one."""

    weight: torch.Tensor
    source: int


def supported(weight: torch.Tensor) -> bool:
    """Whether oneDNN takes this weight: a plain 2-D matrix of a dtype that it, or float32 for it, computes in."""
    return (
        weight.dim() == 2 and weight.device.type == "cpu" and weight.dtype in _DTYPES and bool(_onednn.is_available())
    )


def pack(weight: torch.Tensor) -> Packed:
    """Lay out a weight [N, K]. Costs one copy of it, twice as large where bfloat16 becomes float32."""
    plain = weight.detach()
    if plain.dtype is torch.bfloat16:
        plain = plain.to(product_dtype("cpu"))
    return Packed(torch.ops.mkldnn._reorder_linear_weight(plain), weight.data_ptr())


def packed_weight(module: torch.nn.Module) -> Packed:
    """The packed copy of `module.weight`, made on first use and kept with the module."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    kept = module.__dict__.get(_ATTRIBUTE)
    if isinstance(kept, Packed) and kept.source == weight.data_ptr():
        return kept
    fresh = pack(weight)
    module.__dict__[_ATTRIBUTE] = fresh
    return fresh


def linear(x: torch.Tensor, weight: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: [M, K] -> [M, N]. Every row is the same for any number of rows beside it.

    One row is computed as two: for a row alone oneDNN sums in another order, and near ties would fall otherwise in a
    batch, or in a verify round, than alone.
    """
    if x.shape[0] == 1:
        return linear(x.repeat(2, 1), weight, bias)[:1]
    dtype = weight.weight.dtype
    bias = None if bias is None else bias.to(dtype)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x.to(dtype), weight.weight, bias, "none", [], "")
    return result.to(x.dtype)


def linear_add(x: torch.Tensor, weight: Packed, addend: torch.Tensor) -> torch.Tensor:
    """x W^T + addend, rounded once: [M, K], [M, N] -> [M, N]. Rows as in :func:`linear`."""
    if x.shape[0] == 1:
        return linear_add(x.repeat(2, 1), weight, addend.repeat(2, 1))[:1]
    dtype = weight.weight.dtype
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        x.to(dtype), addend.to(dtype), weight.weight, None, "add"
    )
    return result.to(x.dtype)


def module_linear(module: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(x, module.weight, bias)` on the packed copy where oneDNN can, on the plain weight elsewhere."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if x.dtype != weight.dtype or x.shape[0] == 0 or not supported(weight):
        return F.linear(x, weight, bias)
    if x.dim() == 2:
        return linear(x, packed_weight(module), bias)
    flat = linear(x.reshape(-1, x.shape[-1]), packed_weight(module), bias)
    return flat.view(*x.shape[:-1], flat.shape[-1])


def forget(model: torch.nn.Module, *attributes: str) -> None:
    """Drop every packed copy in a model, and the derived `attributes` that were kept beside them."""
    for module in model.modules():
        for attribute in (_ATTRIBUTE, *attributes):
            module.__dict__.pop(attribute, None)
