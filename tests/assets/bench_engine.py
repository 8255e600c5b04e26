"""Which engine and which target the benches of serving use: the CPU engine and SmolLM2, unless the environment says
otherwise.

``make test-gpu`` sets the variables. No GPU has run these benches yet.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aurora_runtime.cpu import launch_settings as cpu

ENGINE_DEVICE: Final = "AURORA_BENCH_DEVICE"
"""``cuda``: stock SGLang on GPUs, with CUDA graphs and overlap scheduling as SGLang chooses."""
ENGINE_ARGUMENTS: Final = "AURORA_BENCH_ENGINE_ARGS"
"""Further flags of the engine, as in a shell."""
MODEL: Final = "AURORA_BENCH_MODEL"
"""The directory of another target than SmolLM2."""


def engine_device() -> str:
    """``cpu`` or ``cuda``."""
    return os.environ.get(ENGINE_DEVICE, "cpu")


def engine_arguments() -> tuple[str, ...]:
    """The further flags."""
    return tuple(shlex.split(os.environ.get(ENGINE_ARGUMENTS, "")))


def server_arguments(speculative: bool) -> list[str]:
    """The engine's flags, without model, ports and speculation."""
    return [*(cpu.server_args(speculative) if engine_device() == "cpu" else []), *engine_arguments()]


def server_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to an engine's environment."""
    return cpu.environment(base) if engine_device() == "cpu" else {}


def other_model() -> Path | None:
    """The target that the environment names instead of SmolLM2."""
    return Path(path) if (path := os.environ.get(MODEL)) else None
