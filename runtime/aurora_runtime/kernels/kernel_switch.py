"""Which kernels run on a GPU.

A kernel that no GPU has timed is off: torch computes instead. ``AURORA_KERNELS`` in the container's environment turns
kernels on, as a list of names with commas between them.
"""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from functools import cache
from typing import Final

import torch

VARIABLE: Final = "AURORA_KERNELS"
log = logging.getLogger(__name__)


class Kernel(StrEnum):
    """The kernels that can be turned on."""

    BUCKET_LOGPROBS = "bucket-logprobs"
    ADAMW_AVERAGE = "adamw-average"
    CAPTURE_TOPK = "capture-topk"
    TREE_ATTENTION = "tree-attention"


def runs_fused(kernel: Kernel, device: torch.device) -> bool:
    """Whether ``kernel`` runs on ``device``: on a CUDA device, when the environment turns the kernel on."""
    return device.type == "cuda" and kernel in _turned_on()


@cache
def _turned_on() -> frozenset[Kernel]:
    names = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    known = {kernel.value for kernel in Kernel}
    for name in sorted(names - known):
        log.error("%s names no kernel: %s. Known: %s", VARIABLE, name[:64], ", ".join(sorted(known)))
    return frozenset(Kernel(name) for name in names & known)
