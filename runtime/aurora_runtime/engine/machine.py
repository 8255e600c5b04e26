"""Describes the machine that an engine runs on.

A child process asks torch for the GPUs, because a long-lived parent must never load torch. Invariants: one machine
always gets the same description, because measurements are compared only between equal descriptions. The child imports
nothing from the working directory, where a draft's files may lie. The child never outlives the call.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from aurora_api.v1alpha1.serving import Device
from aurora_protocol.agent_api import Machine
from aurora_runtime.errors import EngineFault, GpuMissing

GPU_QUERY_SECONDS = 300.0
"""Time limit of the child process, which imports torch and starts the GPU's driver."""
ISOLATED_PYTHON = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
"""Environment of an engine: Python imports neither from the working directory nor from the user's site."""
_GPU_QUERY = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([count, torch.cuda.get_device_name(0) if count else ""]))
"""


def _cpu_description() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} x {platform.machine()}"


def _gpus() -> str:
    """How many GPUs torch sees, and the name of the first one. Raises as :func:`detect_machine` does."""
    command = [sys.executable, "-I", "-c", _GPU_QUERY]
    try:
        query = subprocess.run(command, capture_output=True, text=True, timeout=GPU_QUERY_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineFault(f"torch did not report the GPUs of this machine in {GPU_QUERY_SECONDS:.0f} s") from error
    if query.returncode != 0:
        raise EngineFault(f"torch did not report the GPUs of this machine: {_last_line(query.stderr)}")
    count, name = json.loads(query.stdout.splitlines()[-1])
    if not count:
        raise GpuMissing
    return f"{count} x {name}"


def _last_line(errors: str) -> str:
    """The last line of a program's errors, where Python names the exception."""
    return (errors.strip().splitlines() or ["no error was printed"])[-1][:300]


def detect_machine(requested: Device) -> Machine:
    """This machine, which computes on the requested device. Raises :class:`GpuMissing` and :class:`EngineFault`."""
    hardware = _cpu_description() if requested is Device.CPU else _gpus()
    return Machine(
        hardware=hardware,
        device=requested.value,
        engine=version("sglang"),
        torch=version("torch"),
    )
