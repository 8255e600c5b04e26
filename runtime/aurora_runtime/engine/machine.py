"""What machine an engine runs on: asked in a child process, because a parent that lives long must never load torch.

Invariant: the same words for the same machine, whoever asks: figures are compared only where they are equal.
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
from aurora_runtime.errors import EngineFault

CHILD_SECONDS = 300.0
_CHILD = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([count, torch.cuda.get_device_name(0) if count else ""]))
"""


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.split(':', 1)[1].strip()}"
    return f"{os.cpu_count()} x {platform.machine()}"


def _gpus() -> tuple[int, str]:
    """How many GPUs torch sees, and the first one's name."""
    found = subprocess.run(
        [sys.executable, "-c", _CHILD], check=False, capture_output=True, text=True, timeout=CHILD_SECONDS
    )
    if found.returncode != 0:
        raise EngineFault(f"torch cannot be asked for GPUs: {found.stderr.strip()[-300:]}")
    count, name = json.loads(found.stdout.splitlines()[-1])
    return int(count), str(name)


def machine(asked: Device) -> Machine:
    """The machine, and its device: what was asked for, or CUDA when there is a GPU. Raises :class:`EngineFault`."""
    count, name = (0, "") if asked is Device.CPU else _gpus()
    cuda = asked is Device.CUDA or (asked is Device.AUTO and count > 0)
    return Machine(
        hardware=f"{count} x {name}" if cuda else _cpu(),
        device="cuda" if cuda else "cpu",
        engine=version("sglang"),
        torch=version("torch"),
    )
