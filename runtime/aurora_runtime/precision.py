"""In which dtype a device multiplies matrices, where the model says bfloat16.

A CPU without instructions for it (AVX2 only, as many servers have) multiplies bfloat16 several times slower than
float32, and oneDNN refuses it. Invariant: the answer depends on the machine alone, so that everything on it agrees.
"""

from __future__ import annotations

from typing import Any

import torch

_onednn: Any = torch.backends.mkldnn


def multiplies_bf16(device_type: str) -> bool:
    """Whether bfloat16 products are worth asking for; float32 ones are as precise or more."""
    if device_type != "cpu":
        return True
    return bool(_onednn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(device_type: str) -> torch.dtype:
    """bfloat16, or float32 where that is not worth asking for."""
    return torch.bfloat16 if multiplies_bf16(device_type) else torch.float32


def autocast(device_type: str) -> torch.autocast:
    """Matrix products in :func:`product_dtype`."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=multiplies_bf16(device_type))
