"""Reads a shard's header and small tensors by ranges, but not its hidden states, which are hundreds of times larger.

Invariants: what is read is bounded, whatever the bytes are. Bytes that are no shard raise ValueError or RecursionError.
This module does not import torch, because the command that erases a tag imports it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from aurora_protocol.tag_hash import NO_TAG

FIRST_READ_BYTES: Final = 1 << 16
"""Covers the header, and in small shards all token ids."""
MAX_TENSOR_BYTES: Final = 8 << 20
INDEX_COLUMNS: Final = 7
"""Numbers of a request in a shard's ``index``, which :func:`aurora_runtime.traces.shard_tensors` writes."""

Read = Callable[[int, int], bytes]
"""Bytes of a shard: from the first argument on, as many as the second says."""


class ShardHeader:
    """The header of a shard, through which its small tensors are read."""

    def __init__(self, read: Read) -> None:
        """Raises ValueError when the bytes are no shard."""
        self._read, self._beginning = read, read(0, FIRST_READ_BYTES)
        if len(self._beginning) < 8:
            raise ValueError("the file is too short")
        (self._header_bytes,) = struct.unpack("<Q", self._beginning[:8])
        if self._header_bytes > len(self._beginning) - 8:
            raise ValueError(f"a header of {self._header_bytes} bytes")
        # JSONDecodeError and UnicodeDecodeError are ValueErrors
        self._header = json.loads(self._beginning[8 : 8 + self._header_bytes])

    def tensor(self, name: str, dtype: str, item_bytes: int) -> bytes:
        """The bytes of a tensor. Raises ValueError when the header's entry is wrong, or the data are cut short."""
        begin, end = _span(self._header, name, dtype, item_bytes)
        first, last = 8 + self._header_bytes + begin, 8 + self._header_bytes + end
        data = self._beginning[first:last] if last <= len(self._beginning) else self._read(first, last - first)
        if len(data) != last - first:
            raise ValueError(f"{name} is cut short")
        return data

    def index(self) -> list[list[int]]:
        """The numbers of each request."""
        index = np.frombuffer(self.tensor("index", "I64", 8), dtype="<i8")
        if index.size % INDEX_COLUMNS:
            raise ValueError("the index has other columns")
        rows: list[list[int]] = index.reshape(-1, INDEX_COLUMNS).tolist()
        return rows

    def tags(self) -> list[int]:
        """The number of each request's tag."""
        requests = len(self.index())
        if "tag" not in self._header:
            return [NO_TAG] * requests
        tags: list[int] = np.frombuffer(self.tensor("tag", "I64", 8), dtype="<i8").tolist()
        if len(tags) != requests:
            raise ValueError("the shard has other tags than requests")
        return tags


def _span(header: Any, name: str, dtype: str, item_bytes: int) -> tuple[int, int]:
    """First and last byte of a tensor within the data. Raises ValueError when the header's entry is wrong."""
    try:
        entry = header[name]
        (begin, end), shape, found = entry["data_offsets"], entry["shape"], entry["dtype"]
        fits = 0 <= begin <= end and end - begin == item_bytes * math.prod(shape) and isinstance(end - begin, int)
    except (KeyError, TypeError) as error:
        raise ValueError("the header lacks a tensor") from error
    if found != dtype or not fits or end - begin > MAX_TENSOR_BYTES:
        raise ValueError("a tensor has another type or size")
    return begin, end
