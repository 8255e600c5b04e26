"""Copies numbers from the host to the device without waiting for the device's queue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aurora_runtime.pinned_copy import copy_to_device


def to_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """The integers ``values`` as int64 on ``device``."""
    return copy_to_device(torch.tensor(values), torch.device(device))
