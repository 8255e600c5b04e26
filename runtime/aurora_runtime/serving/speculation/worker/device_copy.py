"""Copies numbers from the host to the device without waiting for the device's queue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """The integers ``values`` as int64 on ``device``.

    A copy from ordinary memory would first let the device finish all queued work. PyTorch keeps the pinned memory until
    the copy is done.
    """
    tensor = torch.tensor(values)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
