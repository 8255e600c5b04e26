"""Hidden states as the trainer keeps them: packed where that loses nothing, and held once by all that share them.

The examples of a request overlap, and requests share the beginnings of their prompts. So states lie in blocks of at
most :data:`BLOCK_POSITIONS` positions, which are never changed and which their holders share. Memory is counted by
:class:`HeldBytes`, each block once.

Invariants: unpacked states have the bits of the trace. A lender shares a block only where the borrower has all of its
positions, so what is dropped of the lender is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

from aurora_runtime.packed_states import SCALE_TYPE, pack, unpack
from aurora_runtime.traces import RequestTrace

BLOCK_POSITIONS: Final = 64


@dataclass(frozen=True)
class StateBlock:
    """States of consecutive positions; a part of a block is a view of its memory."""

    states: Tensor  # [P, H3] fp8, or the trace's type where fp8 would lose digits
    scale: Tensor  # [P]: the factor of each row in fp8

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, rows: slice) -> StateBlock:
        return StateBlock(self.states[rows], self.scale[rows])

    def clone(self) -> StateBlock:
        """A copy with memory of its own."""
        return StateBlock(self.states.clone(), self.scale.clone())


@dataclass(frozen=True)
class KeptStates:
    """States of consecutive positions of one request."""

    start: int  # absolute position of the first
    blocks: tuple[StateBlock, ...]

    @classmethod
    def of(cls, trace: RequestTrace) -> Self:
        """The states of ``trace``, with memory of their own."""
        states, scale = pack(trace.hidden)
        if trace.hidden.dtype != torch.bfloat16 or not torch.equal(unpack(states, scale), trace.hidden):
            states, scale = trace.hidden, torch.ones(len(scale), dtype=SCALE_TYPE)
        parts = zip(torch.split(states, BLOCK_POSITIONS), torch.split(scale, BLOCK_POSITIONS), strict=True)
        return cls(trace.hidden_start, tuple(StateBlock(*part).clone() for part in parts))

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def __getitem__(self, rows: slice) -> KeptStates:
        """The chosen rows, which share memory with this object."""
        first, stop, _ = rows.indices(len(self))
        parts, begin = list[StateBlock](), 0
        for block in self.blocks:
            parts.append(block[max(first - begin, 0) : max(stop - begin, 0)])
            begin += len(block)
        return KeptStates(self.start + first, tuple(part for part in parts if len(part)))

    def lent_to(self, borrower: KeptStates) -> KeptStates:
        """``borrower`` with the states that this object holds before its own. A block that reaches beyond is copied."""
        lent = self[: borrower.start - self.start].blocks
        whole = tuple(
            block if block.states.untyped_storage().nbytes() == block.states.nbytes else block.clone() for block in lent
        )
        return KeptStates(self.start, whole + borrower.blocks)


def tensors_of(part: Any) -> Iterator[Tensor]:
    """The tensors in ``part``, which consists of dataclasses and sequences."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple | list):
        for each in part:
            yield from tensors_of(each)
    elif is_dataclass(part):
        yield from tensors_of(list(vars(part).values()))


class HeldBytes:
    """Counts the memory behind all tensors that are held. Memory that several of them share counts once."""

    def __init__(self, *held: Any) -> None:
        self._holders = Counter[int]()  # by the memory's address
        self.total = 0
        for each in held:
            self.add(each)

    def add(self, held: Any) -> None:
        """Count the tensors in ``held``."""
        for storage in self._storages(held):
            self._holders[storage.data_ptr()] += 1
            if self._holders[storage.data_ptr()] == 1:
                self.total += storage.nbytes()

    def remove(self, held: Any) -> None:
        """The inverse of :meth:`add`."""
        for storage in self._storages(held):
            self._holders[storage.data_ptr()] -= 1
            if not self._holders[storage.data_ptr()]:
                del self._holders[storage.data_ptr()]
                self.total -= storage.nbytes()

    def _storages(self, held: Any) -> Iterable[torch.UntypedStorage]:
        return (tensor.untyped_storage() for tensor in tensors_of(held))
