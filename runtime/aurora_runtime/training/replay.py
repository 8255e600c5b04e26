"""Examples kept for replay: bounded in bytes, spread over age.

Invariant: the memory never holds more than its bound (but for one example larger than it). When it is full, an example
at a pseudo-random place makes room, so that the survivors' ages fall off geometrically: mostly recent, not only recent.
Which one goes depends on the sequence of additions alone, so that a rebuilt memory is the same memory.
"""

from __future__ import annotations

from typing import Final

import torch

from aurora_runtime.training.examples import Example

_STRIDE: Final = 2_654_435_761
"""Knuth's multiplicative hash: consecutive counters fall far apart."""


class Memory:
    """Examples with a bound of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._examples: list[Example] = []
        self._evicted = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._examples)

    def add(self, example: Example) -> None:
        while self._examples and self.nbytes + example.nbytes > self._limit:
            place = (self._evicted * _STRIDE % 2**32) * len(self._examples) >> 32
            self._evicted += 1
            self.nbytes -= self._examples.pop(place).nbytes
        self._examples.append(example)
        self.nbytes += example.nbytes

    def all(self) -> list[Example]:
        """What is kept, oldest first."""
        return list(self._examples)

    def sample(self, slots: int, generator: torch.Generator) -> list[Example]:
        """Random distinct examples that fill ``slots`` (at least one example), or as many as there are."""
        order = torch.randperm(len(self._examples), generator=generator).tolist()
        return pack([self._examples[i] for i in order], slots, first_only=True)[0] if order else []


def pack(examples: list[Example], slots: int, *, first_only: bool = False) -> list[list[Example]]:
    """Consecutive ``examples`` in groups whose padded size stays within ``slots`` (a larger example goes alone)."""
    groups: list[list[Example]] = []
    widest = 0
    for example in examples:
        widest = max(widest, example.slots)
        if groups and (len(groups[-1]) + 1) * widest <= slots:
            groups[-1].append(example)
            continue
        if groups and first_only:
            break
        groups.append([example])
        widest = example.slots
    return groups
