"""The parts of ``make test-gpu``: a command line each, and what it needs of the machine. Pure but for `on_machine`.

Invariant: a part that cannot run here is listed with the reason. It never disappears from the report.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

import torch
from tests.assets.bench_engine import ENGINE_ARGUMENTS, ENGINE_DEVICE, MODEL
from tests.bench.gpu import CHECKOUT, PACKAGE_FOLDERS

from aurora_runtime.training.model.tree_attention import KERNEL, KERNEL_VARIABLE

KERNEL_RUN: Final = "tests.bench.gpu.kernel_run"
TRAINING_RUN: Final = "tests.bench.gpu.training_run"
SHAPES: Final = ("qwen3-8b", "llama-8b", "coder-next")
CONCURRENCIES: Final = ("1", "2", "4", "8", "16", "32", "64")
TRAINER_PACKAGES: Final = ("pydantic", "safetensors")
SERVING_PACKAGES: Final = (*TRAINER_PACKAGES, "sglang", "sgl_kernel", "aiohttp", "boto3", "transformers")


NEEDS_MODEL: Final = f"SmolLM2 has 9 heads, which 2 GPUs cannot share: set {MODEL} to a target's directory"


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        needs_model: SmolLM2, the target of the benches, cannot be used.
        json_rows: the last line of the output is a JSON object, and no table.
        gpus: how many GPUs the part needs.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    gpus: int = 0
    json_rows: bool = False
    needs_model: bool = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def shown(self) -> str:
        """The command line as a user types it."""
        words = [f"{name}={value!r}" if " " in value else f"{name}={value}" for name, value in self.variables.items()]
        return " ".join([*words, "python", "-m", self.module, *self.arguments])


@dataclass(frozen=True)
class Machine:
    """What decides which parts run."""

    gpus: int
    has_package: Callable[[str], bool]
    has_model: bool = False

    @classmethod
    def on_machine(cls) -> Machine:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(gpus, lambda name: bool(find_spec(name)), MODEL in os.environ)

    def obstacle(self, part: Part) -> str:
        """Why ``part`` cannot run here; empty where it can."""
        missing = [package for package in part.packages if not self.has_package(package)]
        if missing:
            return f"these packages are not installed: {', '.join(missing)}"
        if part.gpus > self.gpus:
            return f"it needs GPUs: {part.gpus}, and here are {self.gpus}"
        return NEEDS_MODEL if part.needs_model and not self.has_model else ""


def parts_of(device: str, *, tiny: bool) -> list[Part]:
    """All parts in their order. On a CPU nothing is timed, so each part runs as briefly as it can."""
    calls = () if device == "cuda" else ("--calls", "2")
    sizes = ("--tiny",) if tiny else ()
    kernel = Part(f"kernel {KERNEL}", KERNEL_RUN, ("--device", device, *sizes, *calls), json_rows=True)
    return [kernel, *trainer_parts(device, ("toy",) if tiny else SHAPES), *serving_parts()]


def trainer_parts(device: str, shapes: Sequence[str]) -> list[Part]:
    """The cost of a training step by part, and short training runs, each without and with the kernel."""
    rounds, steps = ((), ()) if device == "cuda" else (("--rounds", "2", "--batches", "1"), ("--steps", "12"))
    parts = []
    for suffix, variables, gpus in [("", {}, 0), (" with the kernel", {KERNEL_VARIABLE: KERNEL}, 1)]:
        needs: dict[str, Any] = {"variables": variables, "packages": TRAINER_PACKAGES, "gpus": gpus}
        for shape in shapes:
            arguments = ("--shape", shape, *rounds)
            parts.append(Part(f"training step, {shape}{suffix}", "tests.bench.trainer", arguments, **needs))
        arguments = ("--shape", shapes[0], "--device", device, *steps)
        parts.append(Part(f"training run, {shapes[0]}{suffix}", TRAINING_RUN, arguments, **needs, json_rows=True))
    return parts


def serving_parts() -> list[Part]:
    """Capture, swaps and speed on a real engine with CUDA graphs and overlap scheduling."""
    parts = []
    for tp in (1, 2):
        variables = {ENGINE_DEVICE: "cuda", **({ENGINE_ARGUMENTS: f"--tp {tp}"} if tp > 1 else {})}
        for name, module, arguments in (
            ("capture cost", "tests.bench.capture", ()),
            ("swap pause and equal answers", "tests.bench.equality", ()),
            (
                "off, lookup and EAGLE-3",
                "tests.bench.served",
                ("--traffic", "json", "--rounds", "2", "--per-worker", "2", "--concurrency", *CONCURRENCIES),
            ),
        ):
            parts.append(
                Part(f"{name}, TP {tp}", module, arguments, variables, SERVING_PACKAGES, tp, needs_model=tp > 1)
            )
    return parts


def environment(part: Part) -> dict[str, str]:
    """The environment of a part: the checkout's packages can be imported without being installed."""
    folders = [str(CHECKOUT), *PACKAGE_FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **part.variables}
