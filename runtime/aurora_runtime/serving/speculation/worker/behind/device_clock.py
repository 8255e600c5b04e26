"""Times rounds on the device, because the host launches a round long before the device begins it."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Stamps of a device's queue."""

    def stamp(self) -> Any:
        """A stamp that is taken once the device has done all that was queued before."""
        ...

    def milliseconds(self, first: Any, last: Any) -> float:
        """The time between two stamps. Waits for the second."""
        ...


class DeviceClock:
    """Timed events on the current stream."""

    def __init__(self, device: torch.device | str) -> None:
        self._module = torch.get_device_module(device)

    def stamp(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return float(first.elapsed_time(last))
