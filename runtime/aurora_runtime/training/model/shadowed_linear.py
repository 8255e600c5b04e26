"""Linear layers that multiply by a ready copy of their weight in bf16.

Autocast casts each float32 weight at each forward pass. A fused optimizer step can write the cast weight beside the
weight instead. Invariant: a copy that is older than its weight is never used, so loading other weights, or changing
them in torch, needs no care.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SHADOW_TYPE = torch.bfloat16


class _Multiplied(torch.autograd.Function):
    """The shadow in place of its weight. The gradient goes to the weight, in float32."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, shadow: Tensor) -> Tensor:
        return shadow.view_as(shadow)

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> tuple[Tensor | None, ...]:
        return output_grads[0].float(), None


class ShadowedLinear(nn.Linear):
    """A linear layer without bias. It has no shadow until :meth:`keep_shadow` gives it one."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self._shadow: Tensor | None = None
        self._shadow_version = -1

    def shadow_buffer(self) -> Tensor:
        """The memory of the shadow, for a kernel that writes the cast weight. :meth:`keep_shadow` then declares it."""
        return torch.empty_like(self.weight, dtype=SHADOW_TYPE) if self._shadow is None else self._shadow

    def keep_shadow(self, shadow: Tensor) -> None:
        """Use ``shadow``, the weight as it is now in bf16, until torch changes the weight."""
        self._shadow, self._shadow_version = shadow, self.weight._version

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weight in ``dtype``, without gradient."""
        shadow = self._fresh_shadow()
        return shadow if shadow is not None and dtype == SHADOW_TYPE else self.weight.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        shadow = self._fresh_shadow() if torch.is_autocast_enabled(device) else None
        if shadow is None or torch.get_autocast_dtype(device) != SHADOW_TYPE:
            return super().forward(x)
        return functional.linear(x, _Multiplied.apply(self.weight, shadow))

    def _fresh_shadow(self) -> Tensor | None:
        """A kernel's own writes do not count as versions, torch's do."""
        return self._shadow if self._shadow_version == self.weight._version else None
