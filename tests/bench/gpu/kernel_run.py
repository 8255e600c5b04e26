"""Measures the trainer's kernel against the torch code that it replaces, and against the same after ``torch.compile``.

A program of its own, so that a kernel that fails, or breaks the device's context, ends no other measurement. Prints one
JSON object in the last line. Needs torch and Triton only.

On CUDA a sample is the time between two events around one call. Before each call the L2 cache is overwritten, because
in training and serving other tensors pass through it between two calls. The roofs are measured, not read from a data
sheet: bytes per second of a copy, and bf16 operations per second of a matrix product.

On a CPU the kernel runs in Triton's interpreter, and nothing is compiled: the figures show only that it runs and what
it computes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from tests.bench.bench_command import bench_parser
from torch import Tensor

from aurora_runtime.training.model.tree_attention import KERNEL, KERNEL_VARIABLE

CACHE_BYTES: Final = 1 << 28
"""More than the L2 cache of any GPU so far."""
COPY_BYTES: Final = 1 << 30
MATRIX_SIZE: Final = 8192
MEBIBYTE: Final = 1 << 20
WARMUPS: Final = 5


def main() -> None:
    parser = bench_parser("tests.bench.gpu.kernel_run", __doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to run")
    parser.add_argument("--tiny", action="store_true", help="sizes for an interpreter")
    parser.add_argument("--calls", type=int, default=30, help="measured calls of each implementation")
    options = parser.parse_args()
    os.environ.pop(KERNEL_VARIABLE, None)  # so that the rival of a kernel is torch
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, below
    print(json.dumps(rows(options)))


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """The device, its roofs, and a row for each implementation and size."""
    from tests.bench.gpu.kernel_cases import Case, cases

    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    roofs = measure_roofs(device, options.calls) if on_gpu else None

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(function) if on_gpu else function

    def row(case: Case, name: str, run: Callable[..., tuple[Tensor, ...]]) -> dict[str, Any]:
        # Results are copied, because the next call may overwrite them.
        expected = tuple(tensor.clone() for tensor in case.today(*case.make()))
        difference = largest_difference(run(*case.make()), expected)
        samples = measure(case.make, run, device, options.calls)
        return {
            "kernel": KERNEL,
            "size": case.size,
            "implementation": name,
            "milliseconds": samples.milliseconds,
            "peak_mebibytes": samples.peak_mebibytes,
            "least_milliseconds": least_milliseconds(roofs, case.least_bytes, case.operations),
            "largest_difference": difference,
        }

    found = []
    for case in cases(device, tiny=options.tiny):
        found.append(row(case, "torch", case.today))
        found.append(row(case, "torch.compile" if on_gpu else "plain torch, not compiled", case.compiled(compiler)))
        found.append(row(case, "kernel" if on_gpu else "kernel, interpreted", case.fused))
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    return {"device": name, "roofs": vars(roofs) if roofs else None, "rows": found}


def least_milliseconds(roofs: Roofs | None, moved_bytes: int, operations: int) -> float | None:
    return roofs.least_milliseconds(moved_bytes, operations) if roofs else None


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


if __name__ == "__main__":
    main()
