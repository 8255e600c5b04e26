"""The fused tree attention and its gradients are the reference's, and compile for GPUs. No GPU has run them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from aurora_runtime.kernels import trunk_attention
from aurora_runtime.training.model.tree_attention import KERNEL, KERNEL_VARIABLE, runs_fused
from tests.unit.kernels import interpreted_tree_attention

SHARED_BYTES = 160 * 1024
"""What a program gets on an A100 when it asks for it. An H100 gives more."""


def test_the_kernels_compute_what_the_reference_computes() -> None:
    """In a process of its own, because Triton decides at its import whether to interpret."""
    command = [sys.executable, "-m", interpreted_tree_attention.__name__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


POINTERS = ["q", "k", "out", "log_sum", "out_grad", "offset", "q_grad", "k_grad", "v_grad"]
TYPES = {
    **dict.fromkeys(POINTERS, "*fp32"),
    "v": "*bf16",  # a projection under autocast
    "root_slot": "*i64",
    **dict.fromkeys(["nodes", "slots", "heads", "groups", "width"], "i32"),
    "scale": "fp32",
}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("kernel", ["_forward", "_backward_nodes", "_backward_slots"])
def test_the_kernels_compile_for_gpus(kernel: str, width: int, architecture: int) -> None:
    constants = trunk_attention._constants(torch.empty(1, 1, 1, width), torch.bfloat16)
    function = getattr(trunk_attention, kernel)
    signature = {**TYPES, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(function, {name: signature[name] for name in function.arg_names}, dict(constants))
    compiled = compile_kernel(source, target=GPUTarget("cuda", architecture, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared < SHARED_BYTES


def test_the_kernels_are_off_until_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv(KERNEL_VARIABLE, raising=False)
    assert not runs_fused(cuda)
    monkeypatch.setenv(KERNEL_VARIABLE, KERNEL)
    assert (runs_fused(cuda), runs_fused(cpu)) == (True, False)
