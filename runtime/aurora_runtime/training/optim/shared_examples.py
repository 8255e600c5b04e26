"""Hands the examples of a step to the other ranks: the leader writes them into memory that all ranks map.

Why: examples are the only large data that ranks exchange beside gradients, 12 kB a slot for a target of hidden
size 4,096. So the leader copies each once, and no rank serializes one. A small table says where each tensor lies.

Invariants: an example that was read is a view into the memory. It is valid until the leader's next write. That comes
only after every rank took part in a sum of the step, and so has collated its share. The memory belongs to no file
system: a small ``/dev/shm``, as containers have, does not limit it, and it ends with the processes.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.training.data.captured import CapturedDistributions
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.kept_states import KeptStates, StateBlock
from aurora_runtime.training.data.rejected_nodes import RejectedNodes

_ALIGNMENT: Final = 64
_GROWTH: Final = 1.5
_DTYPES: Final = {
    str(dtype): dtype
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float8_e4m3fn,
        torch.int8,
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}
_PARTS: Final[dict[str, type]] = {"aux": KeptStates, "targets": CapturedDistributions, "rejected": RejectedNodes}
"""The fields of an example, and of its rejected nodes, that hold several tensors."""
_BLOCKS: Final = "blocks"
"""The field that holds several parts."""

Row = list[Any]
"""One example in a table: its numbers, and ``[offset, dtype, *shape]`` for each of its tensors."""


@dataclass(frozen=True)
class StepTable:
    """What the leader sends: the memory, and each rank's examples in it. It consists of JSON's types."""

    path: str
    size: int  # bytes of the memory
    shares: list[list[Row]]  # by rank


class ExampleWriter:
    """The leader's side."""

    def __init__(self) -> None:
        self._file = os.memfd_create("aurora-examples")
        weakref.finalize(self, os.close, self._file)
        self._memory = torch.empty(0, dtype=torch.uint8)

    def write(self, shares: Sequence[Sequence[Example]]) -> StepTable:
        """Write the examples of all ranks but the first, which is this process and keeps its own."""
        tensors = list[tuple[int, Tensor]]()
        end = 0

        def entry(value: int | Tensor) -> int | Row:
            nonlocal end
            if not isinstance(value, Tensor):
                return value
            offset = end
            tensors.append((offset, value))
            end += -(-_nbytes(value) // _ALIGNMENT) * _ALIGNMENT
            return [offset, str(value.dtype), *value.shape]

        rows = [[[entry(value) for value in _values(example)] for example in share] for share in shares[1:]]
        if end > self._memory.numel():
            os.ftruncate(self._file, int(end * _GROWTH))
            self._memory = _mapped(self._file, int(end * _GROWTH))
        for offset, tensor in tensors:
            self._memory[offset : offset + _nbytes(tensor)] = tensor.contiguous().view(-1).view(torch.uint8)
        return StepTable(f"/proc/{os.getpid()}/fd/{self._file}", self._memory.numel(), [[], *rows])


class ExampleReader:
    """The side of the other ranks, which run as the leader's user."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def read(self, table: StepTable, rank: int) -> list[Example]:
        """The examples of ``rank``, as views into the memory."""
        if table.size != self._memory.numel():
            file = os.open(table.path, os.O_RDWR)
            self._memory = _mapped(file, table.size)
            os.close(file)
        return [_built(Example, map(self._value, row)) for row in table.shares[rank]]

    def _value(self, entry: int | Row) -> int | Tensor:
        if not isinstance(entry, list):
            return entry
        offset, dtype, *shape = entry
        end = offset + prod(shape) * _DTYPES[dtype].itemsize
        return self._memory[offset:end].view(_DTYPES[dtype]).view(*shape)


def _mapped(file: int, size: int) -> Tensor:
    """The first ``size`` bytes of ``file``, shared. The mapping lives as long as the tensor."""
    return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)


def _values(part: Any) -> Iterator[int | Tensor]:
    """The numbers and tensors of an example, in the order of its fields."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.name in _PARTS:
            yield from _values(value)
        elif field.name == _BLOCKS:
            yield len(value)
            for block in value:
                yield from _values(block)
        else:
            yield value


def _built(kind: type, values: Iterator[int | Tensor]) -> Any:
    """The inverse of :func:`_values`."""
    return kind(**{field.name: _field(field.name, values) for field in fields(kind)})


def _field(name: str, values: Iterator[Any]) -> Any:
    if name == _BLOCKS:
        return tuple(_built(StateBlock, values) for _ in range(next(values)))
    return _built(_PARTS[name], values) if name in _PARTS else next(values)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
