"""Times rounds on the device, because the host launches a round before the device has ended the one before."""

from __future__ import annotations

from typing import Any

import torch


class DeviceClock:
    """Timed events on the current stream, which is SGLang's forward stream while a hook runs around a forward pass."""

    def __init__(self, device: torch.device | str) -> None:
        self._module = torch.get_device_module(device)

    def stamp(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last))
