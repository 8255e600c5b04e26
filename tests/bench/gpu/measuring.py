"""Time, peak memory and the roofs of one device. Needs torch only.

On CUDA a sample is the time between two events around one call. Before each call the L2 cache is overwritten, because
in training and serving other tensors pass through it between two calls. The roofs are measured, not read from a data
sheet: bytes per second of a copy, and bf16 operations per second of a matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

CACHE_BYTES: Final = 1 << 28
"""More than the L2 cache of any GPU so far."""
COPY_BYTES: Final = 1 << 30
MATRIX_SIZE: Final = 8192
MEBIBYTE: Final = 1 << 20
WARMUPS: Final = 5


@dataclass(frozen=True)
class Samples:
    """Milliseconds of single calls, and the memory that a call takes beside its inputs (on CUDA only)."""

    milliseconds: list[float]
    peak_mebibytes: float | None


@dataclass(frozen=True)
class Roofs:
    """What the device reaches at best."""

    bytes_per_second: float
    operations_per_second: float

    def least_milliseconds(self, moved_bytes: int, operations: int) -> float:
        """The shortest possible time of a call that moves so many bytes and takes so many operations."""
        return 1000 * max(moved_bytes / self.bytes_per_second, operations / self.operations_per_second)


def measure(
    make: Callable[[], tuple[Any, ...]], run: Callable[..., object], device: torch.device, calls: int
) -> Samples:
    """Measure ``run`` on fresh inputs of ``make``, ``calls`` times after some warm-ups. ``make`` is not measured."""
    if device.type != "cuda":
        return Samples([_seconds_on_cpu(make, run) * 1000 for _ in range(calls)], None)
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)
    milliseconds, peaks = list[float](), list[float]()
    for number in range(WARMUPS + calls):
        inputs = make()
        cache.zero_()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        run(*inputs)
        ended.record()
        torch.cuda.synchronize()
        if number >= WARMUPS:
            milliseconds.append(began.elapsed_time(ended))
            peaks.append((torch.cuda.max_memory_allocated() - before) / MEBIBYTE)
    return Samples(milliseconds, max(peaks))


def _seconds_on_cpu(make: Callable[[], tuple[Any, ...]], run: Callable[..., object]) -> float:
    inputs = make()
    began = time.perf_counter()
    run(*inputs)
    return time.perf_counter() - began


def measure_roofs(device: torch.device, calls: int) -> Roofs:
    """Measure a copy and a matrix product. Their medians are the roofs."""
    source = torch.zeros(COPY_BYTES, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    left = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(torch.bfloat16)
    copies = measure(lambda: (source,), target.copy_, device, calls).milliseconds
    products = measure(lambda: (left, left), torch.mm, device, calls).milliseconds
    return Roofs(
        2 * COPY_BYTES * 1000 / sorted(copies)[len(copies) // 2],
        2 * MATRIX_SIZE**3 * 1000 / sorted(products)[len(products) // 2],
    )


def largest_difference(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference between two results, relative to the largest finite number of each expected tensor."""
    worst = 0.0
    for own, other in zip(results, expected, strict=True):
        finite = other.double()[other.double().isfinite()]
        if finite.numel():
            difference = (own.double()[other.double().isfinite()] - finite).abs().nan_to_num(nan=float("inf"))
            worst = max(worst, float(difference.max() / finite.abs().max().clamp(min=1e-30)))
    return worst
