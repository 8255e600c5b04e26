"""Measures the trainer's kernel against the torch code that it replaces, and against the same after ``torch.compile``.

A program of its own, so that a kernel that fails, or breaks the device's context, ends no other measurement. Prints one
JSON object in the last line. Needs torch and Triton only.

On a CPU the kernel runs in Triton's interpreter, and nothing is compiled: the figures show only that it runs and what
it computes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from tests.bench.bench_command import bench_parser
from tests.bench.gpu.measuring import Roofs, largest_difference, measure, measure_roofs

from aurora_runtime.training.model.tree_attention import KERNEL, KERNEL_VARIABLE


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

    def row(case: Case, name: str, run: Callable[..., tuple[torch.Tensor, ...]]) -> dict[str, Any]:
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


if __name__ == "__main__":
    main()
