"""What does a GPU make of this? The trainer's kernel against torch, the trainer, and serving where SGLang is installed.

The kernel is measured against the torch code that it replaces and against torch.compile: time, peak memory, and the
share of the roofline, which is the device's own copy and matrix product. Then come the cost of a training step and
short training runs in the shape of real targets. Where SGLang's CUDA packages are installed, benches of serving follow:
capture, swaps, and off, lookup and EAGLE-3 at 1 to 64 requests at a time.

Each part is a process of its own. A part that fails, or that this machine cannot run, is listed with the reason, and
the others go on. The kernel needs torch and Triton only, and nothing is installed: the checkout is imported as it is.

With --device cpu --tiny everything runs that needs no GPU: the kernel in Triton's interpreter at toy sizes, and a
training run of a toy draft. The report then says in each row that no GPU has run it.

Prints Markdown, and writes it and the raw samples to --out. Exits with 1 when a part failed. No GPU has run it yet.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tests.bench.bench_command import bench_parser, commit, exit_on_sigterm, machine
from tests.bench.gpu import CHECKOUT
from tests.bench.gpu.parts import Machine, Part, environment, parts_of
from tests.bench.gpu.report import Result, report

SHOWN_ERROR_CHARACTERS = 2000


def run_part(part: Part, timeout_seconds: float) -> Result:
    """Run ``part`` and return what it printed."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            part.command(),
            env=environment(part),
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(part.name, part.shown(), failed=True, output=f"not done within {timeout_seconds:.0f} s")
    seconds = time.monotonic() - began
    if done.returncode != 0:
        errors = (done.stderr or done.stdout)[-SHOWN_ERROR_CHARACTERS:]
        return Result(part.name, part.shown(), failed=True, seconds=seconds, output=errors)
    if part.json_rows:
        figures = json.loads(done.stdout.splitlines()[-1])
        return Result(part.name, part.shown(), seconds=seconds, figures=figures)
    return Result(part.name, part.shown(), seconds=seconds, output=done.stdout)


def run_all(parts: Sequence[Part], here: Machine, timeout_seconds: float) -> list[Result]:
    """Run the parts that can run here, one after the other."""
    results = []
    for part in parts:
        obstacle = here.obstacle(part)
        if obstacle:
            results.append(Result(part.name, part.shown(), obstacle=obstacle))
            continue
        print(f"{part.name}: {part.shown()}", file=sys.stderr, flush=True)
        results.append(run_part(part, timeout_seconds))
    return results


def main() -> None:
    here = Machine.on_machine()
    parser = bench_parser("tests.bench.gpu", __doc__)
    usual = "cuda" if here.gpus else "cpu"
    parser.add_argument("--device", choices=["cuda", "cpu"], default=usual, help="where kernels and training run")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; a CPU always runs these")
    parser.add_argument("--only", default="", help="run only the parts whose name contains this")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds after which a part is stopped")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="directory of gpu.md and gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not here.gpus:
        parser.error("torch sees no GPU on this machine: use --device cpu --tiny")
    if options.device == "cpu":
        here = replace(here, gpus=0)  # nothing runs on a GPU that the user did not ask for
    exit_on_sigterm()
    parts = parts_of(options.device, tiny=options.tiny or options.device == "cpu")
    results = run_all([part for part in parts if options.only in part.name], here, options.timeout)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    title = f"GPU bench: {card}, {machine()}, torch {torch.__version__}, commit {commit(CHECKOUT)}, {day}"
    text = report(results, title, on_gpu=options.device == "cuda")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.md").write_text(text)
    raw = {"title": title, "parts": [result.as_json() for result in results]}
    (options.out / "gpu.json").write_text(json.dumps(raw, indent=1))
    print(text)
    if any(result.failed for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
