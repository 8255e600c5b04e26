"""Copies tensors from the host to a GPU without waiting for the GPU's queue.

Before a copy from ordinary (pageable) memory CUDA finishes all queued work, and the caller waits, even with
``non_blocking``. A copy from pinned memory joins the queue, and the caller goes on.

Invariant: pinned memory is not reused before its copy has ended, although nothing refers to the memory any more.
PyTorch's allocator of pinned memory records an event behind every non-blocking copy, and keeps freed memory until that
event has passed.

Never run on a GPU: tests replace the two calls that need CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The CPU's ``tensor`` on ``device``; for a CPU, ``tensor`` itself. Only CUDA needs and gets pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device | str) -> Tensor:
    """The integers ``values`` as int64 on ``device``, copied without waiting for the device's queue."""
    return copy_to_device(torch.tensor(values), torch.device(device))
