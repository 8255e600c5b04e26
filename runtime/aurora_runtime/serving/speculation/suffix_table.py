"""A hash table of suffixes: where did the last m tokens of a text occur, and what followed them?

A slot holds the latest place only, and a later suffix with the same hash overwrites it. So the table has a fixed size
and an insertion a fixed cost, whatever the tokens are. Invariant: the table never compares tokens. A place that it
returns is a hint, and the reader checks it against the text.

The hash of m tokens is ``sum(a[k] * token[k]) mod 2**64`` with odd multipliers, and its slot the upper bits of that
sum (multiply-shift hashing, Dietzfelbinger). The sum for a longer suffix continues the sum of a shorter one.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Slots = list[tuple[int, int]]
"""``(order, slot)`` of the suffixes of a text. The longest suffix comes first, and its slot for the first salt."""

_MASK: Final = (1 << 64) - 1


class SuffixTable:
    """Places by suffix, for the suffix lengths ``orders`` (ascending) and ``slots`` slots a length (a power of two).

    A place is a positive number that the caller chooses. A ``space`` keeps the suffixes of one reader apart from
    others in the same table.
    """

    def __init__(self, orders: Sequence[int], slots: int) -> None:
        self._longest: Final = orders[-1]
        self._shift: Final = 65 - slots.bit_length()
        numbers = random.Random(2)  # noqa: S311 - no secret, and the same on all ranks
        *multipliers, self._space_multiplier = (numbers.getrandbits(64) | 1 for _ in range(self._longest + 1))
        starts = {order: row * slots for row, order in enumerate(orders)}
        self._steps: Final = [(order, a, starts.get(order)) for order, a in enumerate(multipliers, start=1)]
        self._array: NDArray[np.int64] = np.zeros(len(orders) * slots, dtype=np.int64)
        self._view: Final = self._array.data

    def slots_of(self, tokens: array[int], end: int, salts: Sequence[int]) -> Slots:
        """The slots of all suffixes of ``tokens[:end]`` that the text is long enough for, one for each salt."""
        total, found, shift, last_salt_first = 0, [], self._shift, salts[::-1]
        for order, multiplier, start in self._steps[:end]:
            total += multiplier * tokens[end - order]
            if start is not None:
                for salt in last_salt_first:
                    slot = start + (((total + salt) & _MASK) >> shift)
                    found.append((order, slot))
        found.reverse()
        return found

    def salts_of(self, spaces: Sequence[int]) -> tuple[int, ...]:
        """What tells the suffixes of these spaces from those of others."""
        return tuple(space * self._space_multiplier & _MASK for space in spaces)

    def find(self, slots: Slots) -> Iterator[tuple[int, int]]:
        """``(order, place)``: the latest place that was put into each slot, if one was, in the order of the slots."""
        view = self._view
        for order, slot in slots:
            if place := view[slot]:
                yield order, place

    def put(self, slots: Slots, place: int) -> None:
        """Note that the suffixes of these slots occurred, and that ``place`` followed them."""
        view = self._view
        for _, slot in slots:
            view[slot] = place

    def put_range(self, tokens: array[int], first: int, last: int, spaces: Sequence[int], place: int) -> None:
        """The same as :meth:`put` of ``place + end`` for each ``end`` from ``first`` to ``last - 1``.

        Vectorised, for prompts.
        """
        count = last - first
        if count <= 0:
            return
        window = np.array(tokens[max(0, first - self._longest) : last - 1], dtype=np.int64).view(np.uint64)
        missing = max(0, self._longest - first)
        window = np.concatenate([np.zeros(missing, dtype=np.uint64), window])
        salts = np.array([(space * self._space_multiplier) & _MASK for space in spaces], dtype=np.uint64)
        places = np.arange(place + first, place + last, dtype=np.int64).repeat(len(spaces))
        total = np.zeros(count, dtype=np.uint64)
        for order, multiplier, start in self._steps:
            total += window[self._longest - order :][:count] * np.uint64(multiplier)
            if start is not None:
                skipped = max(0, order - first)  # the text is too short for this order before
                slots = ((total[skipped:, None] + salts) >> np.uint64(self._shift)).astype(np.int64) + start
                # In the order of put(): where two spaces share a slot, the later place stays.
                self._array[slots.reshape(-1)] = places[skipped * len(spaces) :]
