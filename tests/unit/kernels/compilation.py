"""Two ways to test a Triton kernel without a GPU: interpret it, and compile it ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

STATIC_SHARED_BYTES = 48 * 1024
"""Shared memory that every GPU gives to a program without being asked."""


def run_interpreted(module: str) -> None:
    """Run ``module`` as a program in Triton's interpreter. Triton decides at its import whether to interpret."""
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def compile_for(
    architecture: int,
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    shared_bytes: int = STATIC_SHARED_BYTES,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Compile ``kernel`` for compute capability ``architecture`` / 10, and check its shared memory.

    ``types`` may name more arguments than the kernel has.
    """
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, dict(constants))
    compiled = compile_kernel(source, target=GPUTarget("cuda", architecture, 32), options=dict(options or {}))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared < shared_bytes
