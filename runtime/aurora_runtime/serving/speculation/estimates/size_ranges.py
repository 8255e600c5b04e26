"""Ranges of batch sizes within which rounds take about the same time. Pure.

The cost model keeps one time for each arm and range. A metric names the range too, because a label with the size of a
batch would take a new value with each size.
"""

from __future__ import annotations


def size_range(batch_size: int) -> int:
    """The number of the range of batch sizes: 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17-24, …"""
    if batch_size <= 4:
        return batch_size
    bits = (batch_size - 1).bit_length() - 1
    return 2 * bits + 1 + (batch_size > 3 << (bits - 1))


def range_text(batch_size: int) -> str:
    """The range that holds this size, as ``3`` or ``9-12``."""
    if batch_size <= 4:
        return str(batch_size)
    width = 1 << ((batch_size - 1).bit_length() - 2)
    first = (batch_size - 1) // width * width + 1
    return f"{first}-{first + width - 1}"
