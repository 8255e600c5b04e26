"""Copies tensors from the host to a GPU without waiting for the GPU's queue.

Before a copy from ordinary (pageable) memory CUDA finishes all queued work, and the caller waits, even with
``non_blocking``. A copy from pinned memory joins the queue, and the caller goes on.

Invariant: pinned memory is not reused before its copy has ended, although nothing refers to the memory any more.
PyTorch's allocator of pinned memory records an event behind every non-blocking copy, and keeps freed memory until that
event has passed.

Never run on a GPU: tests replace the two calls that need CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The CPU's ``tensor`` on ``device``; for a CPU, ``tensor`` itself. Only CUDA needs and gets pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
