"""The dtype in which a device multiplies matrices where the model says bfloat16.

A CPU without bfloat16 instructions (AVX2 only, as many servers have) multiplies bfloat16 several times slower than
float32, and oneDNN refuses to multiply it. Invariant: the dtype depends on the machine alone, so that all code on a
machine uses the same dtype.
"""

from __future__ import annotations

from typing import Any

import torch

_onednn: Any = torch.backends.mkldnn


def multiplies_bf16(device_type: str) -> bool:
    """Whether bfloat16 products are fast here. If not, float32 products are faster and at least as precise."""
    if device_type != "cpu":
        return True
    return bool(_onednn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where the device multiplies it fast, else float32."""
    return torch.bfloat16 if multiplies_bf16(device_type) else torch.float32


def autocast(device_type: str) -> torch.autocast:
    """Autocast of matrix products to :func:`product_dtype`."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=multiplies_bf16(device_type))
