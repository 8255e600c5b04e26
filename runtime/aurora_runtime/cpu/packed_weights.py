"""Linear layers on weights in oneDNN's own layout, about twice as fast as plain ones on few rows.

The packed weight is a private second copy. It is in float32 where the CPU does not multiply bfloat16: products are then
summed in float32 and rounded once, as oneDNN does elsewhere.

Invariant: a packed copy is never used after its weight has changed. The copy remembers the address of the weight that
it was made from. Every SGLang function that writes weights ends in `forget` (`wrappers.invalidate_derived_weights`).

Letters in shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from aurora_runtime.precision import product_dtype

_PACKED_ATTRIBUTE = "_aurora_packed"
_SUPPORTED_DTYPES = (torch.bfloat16, torch.float32)
_onednn: Any = torch.backends.mkldnn
log = logging.getLogger(__name__)

FEWEST: Final = 2
"""oneDNN sums a single row in another order than a row among several."""
MOST: Final = 4
"""Rows from which on nothing is added."""
LEAST_GAIN: Final = 0.05
"""Share of the time that added rows must save. Less is within the noise of the measurement."""
REPETITIONS: Final = 7


class RowCounts:
    """The number of rows to compute where a pass has one to three. Until :meth:`measure`, as few as possible.

    oneDNN has another kernel for each small number of rows, and fewer rows may take longer. On one machine with AVX-512
    the products of a pass took 28 ms for two rows and 22 ms for four. On others the smallest number is the fastest. A
    row's result does not depend on the rows beside it, so answers do not depend on the choice, as long as there are at
    least two.
    """

    def __init__(self) -> None:
        self._counts = tuple(max(FEWEST, rows) for rows in range(MOST + 1))
        self._is_measured = False

    def __call__(self, rows: int) -> int:
        return rows if rows > MOST else self._counts[rows]

    def measure(self, compute: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> None:
        """Choose by the shortest of some times of ``compute(rows)``. Only the first call does anything."""
        if self._is_measured:
            return
        self._is_measured = True
        seconds = dict.fromkeys(range(FEWEST, MOST + 1), float("inf"))
        for repetition in range(REPETITIONS + 1):
            for rows in seconds:
                began = clock()
                compute(rows)
                if repetition:  # the first one warms up
                    seconds[rows] = min(seconds[rows], clock() - began)
        fastest = {rows: _fastest(rows, seconds) for rows in seconds}
        self._counts = tuple(fastest[max(FEWEST, rows)] for rows in range(MOST + 1))
        log.info("aurora cpu: products of one, two and three rows have %d, %d and %d rows", *self._counts[1:MOST])


def _fastest(least: int, seconds: dict[int, float]) -> int:
    """The fastest number of rows from ``least`` on, if it saves enough."""
    best = min(range(least, MOST + 1), key=seconds.__getitem__)
    return best if seconds[best] <= (1 - LEAST_GAIN) * seconds[least] else least


row_counts = RowCounts()
"""How many rows the products of this process have where a pass has few."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [N, K] in oneDNN's layout. `source` is the address of the plain weight."""

    weight: torch.Tensor
    source: int


def is_supported(weight: torch.Tensor) -> bool:
    """Whether oneDNN can pack this weight: a plain 2-D matrix on the CPU, in bfloat16 or float32."""
    return (
        weight.dim() == 2
        and weight.device.type == "cpu"
        and weight.dtype in _SUPPORTED_DTYPES
        and bool(_onednn.is_available())
    )


def pack(weight: torch.Tensor) -> PackedWeight:
    """Pack a weight [N, K]. The copy is as large as the weight, or twice as large where bfloat16 becomes float32."""
    plain = weight.detach()
    if plain.dtype is torch.bfloat16:
        plain = plain.to(product_dtype("cpu"))
    return PackedWeight(torch.ops.mkldnn._reorder_linear_weight(plain), weight.data_ptr())


def packed_weight(module: torch.nn.Module) -> PackedWeight:
    """The packed copy of `module.weight`, made on first use and cached on the module."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    cached = module.__dict__.get(_PACKED_ATTRIBUTE)
    if isinstance(cached, PackedWeight) and cached.source == weight.data_ptr():
        return cached
    fresh = pack(weight)
    module.__dict__[_PACKED_ATTRIBUTE] = fresh
    return fresh


def linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: [M, K] -> [M, N]. A row's result does not depend on how many rows stand beside it.

    A single row is computed as several. oneDNN sums a single row in another order, so that a near tie could fall one
    way for a request alone, and the other way in a batch or in a verify round.
    """
    rows, dtype = x.shape[0], weight.weight.dtype
    if (count := row_counts(rows)) != rows:
        return linear(with_rows(x, count), weight, bias)[:rows]
    bias = None if bias is None else bias.to(dtype)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x.to(dtype), weight.weight, bias, "none", [], "")
    return result.to(x.dtype)


def linear_add(x: torch.Tensor, weight: PackedWeight, addend: torch.Tensor) -> torch.Tensor:
    """x W^T + addend, rounded once: [M, K], [M, N] -> [M, N]. Rows are added as in :func:`linear`."""
    rows, dtype = x.shape[0], weight.weight.dtype
    if (count := row_counts(rows)) != rows:
        return linear_add(with_rows(x, count), weight, with_rows(addend, count))[:rows]
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        x.to(dtype), addend.to(dtype), weight.weight, None, "add"
    )
    return result.to(x.dtype)


def with_rows(x: torch.Tensor, rows: int) -> torch.Tensor:
    """x with rows of zeros added: [M, K] -> [rows, K]."""
    return x if x.shape[0] == rows else F.pad(x, (0, 0, 0, rows - x.shape[0]))


def module_linear(module: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(x, module.weight, bias)`, on the packed copy where oneDNN can pack it: [..., K] -> [..., N]."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if x.dtype != weight.dtype or x.shape[0] == 0 or not is_supported(weight):
        return F.linear(x, weight, bias)
    if x.dim() == 2:
        return linear(x, packed_weight(module), bias)
    flat = linear(x.reshape(-1, x.shape[-1]), packed_weight(module), bias)
    return flat.view(*x.shape[:-1], flat.shape[-1])


def forget(model: torch.nn.Module, *attributes: str) -> None:
    """Drop every packed copy in a model, and every derived object that is cached under one of `attributes`."""
    for module in model.modules():
        for attribute in (_PACKED_ATTRIBUTE, *attributes):
            module.__dict__.pop(attribute, None)
