"""The replay buffer: examples bounded in bytes, spread over age.

Invariant: after an addition the buffer holds no more than its bound, except when a single example is larger. Memory
that examples share counts once (:class:`~aurora_runtime.training.data.kept_states.HeldBytes`). When the
buffer is full, spans at a pseudo-random index make room, so that the survivors' ages fall off geometrically: mostly
recent, not only recent. Examples come and go in spans of one shard, so that few shards restore the survivors.

This is a reservoir over ages, not over domains, of which examples know nothing. Each further buffer's worth of traffic
leaves 1/e of the former content: of a domain A that filled the buffer, 37 % stay after as many bytes of a domain B,
13 % after twice as many. So a short excursion does not displace the earlier domain, and traffic that never comes back
is forgotten in the end.

Evictions, and draws with a given generator, depend only on the sequence of additions, shard by shard. A buffer that
:mod:`~aurora_runtime.training.state.replay_restore` refilled therefore continues exactly like the original one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.kept_states import HeldBytes

_HASH_MULTIPLIER: Final = 2_654_435_761
"""Knuth's multiplicative hash: consecutive counters fall far apart."""
MIN_SPANS: Final = 64
"""A span has at most 1/MIN_SPANS of the buffer's bytes, or a single example. Smaller shards are added and evicted as a
whole, so that restoring them reads no more than the buffer holds."""


@dataclass(frozen=True)
class ShardSpan:
    """Consecutive examples of one shard."""

    shard: str
    first: int  # index among the shard's examples
    count: int


@dataclass(frozen=True)
class _BufferedSpan:
    span: ShardSpan
    examples: tuple[Example, ...]

    @property
    def roots(self) -> int:
        return sum(example.root_count for example in self.examples)


class ReplayBuffer:
    """The examples that can be replayed, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._spans: list[_BufferedSpan] = []
        self.evicted = 0
        """Spans evicted since the buffer was first created; decides which span goes next."""
        self._held = HeldBytes()
        self.roots = 0
        """Roots that one pass over the buffer trains."""

    @property
    def nbytes(self) -> int:
        return self._held.total

    def __len__(self) -> int:
        return sum(len(span.examples) for span in self._spans)

    def add(self, examples: Sequence[Example], shard: str = "") -> None:
        """Add all ``examples`` of ``shard``. A restart cannot restore examples without a shard's name."""
        first = 0
        for group in _split_by_bytes(examples, self._limit_bytes // MIN_SPANS):
            self._append(ShardSpan(shard, first, len(group)), group)
            self._make_room()
            first += len(group)

    def restore(self, span: ShardSpan, examples: Sequence[Example]) -> None:
        """Add back a span that :meth:`spans` listed. ``examples`` are all examples of its shard, in order."""
        self._append(span, examples[span.first : span.first + span.count])

    def drop(self, shards: Collection[str]) -> None:
        """Remove the examples of ``shards``, whose traces may not be kept. They do not count as evicted."""
        for index in reversed(range(len(self._spans))):
            if self._spans[index].span.shard in shards:
                self._remove(index)

    def _make_room(self) -> None:
        """Evict spans, but never the newest one."""
        while len(self._spans) > 1 and self.nbytes > self._limit_bytes:
            self._remove((self.evicted * _HASH_MULTIPLIER % 2**32) * (len(self._spans) - 1) >> 32)
            self.evicted += 1

    def _remove(self, index: int) -> None:
        removed = self._spans.pop(index)
        self._held.remove(removed.examples)
        self.roots -= removed.roots

    def _append(self, span: ShardSpan, examples: Sequence[Example]) -> None:
        self._spans.append(_BufferedSpan(span, tuple(examples)))
        self._held.add(self._spans[-1].examples)
        self.roots += self._spans[-1].roots

    def spans(self) -> list[ShardSpan]:
        """The spans in the buffer, oldest first."""
        return [buffered.span for buffered in self._spans]

    def examples(self) -> list[Example]:
        """The examples in the buffer, oldest first."""
        return [example for buffered in self._spans for example in buffered.examples]

    def sample(self, bound: BatchBound, generator: torch.Generator) -> list[Example]:
        """Distinct random examples that fill a batch within ``bound``, or all examples if they do not fill it.

        At least one example is drawn unless the buffer is empty. All have the same chance, whatever their age.
        """
        kept = self.examples()
        order = torch.randperm(len(kept), generator=generator).tolist()
        return bound.batches([kept[i] for i in order], first_only=True)[0] if order else []


def _split_by_bytes(examples: Sequence[Example], max_bytes: int) -> Iterator[Sequence[Example]]:
    """Consecutive ``examples`` in groups of at most ``max_bytes``; a larger example goes alone."""
    first, held = 0, HeldBytes()
    for index, example in enumerate(examples):
        held.add(example)
        if index > first and held.total > max_bytes:
            yield examples[first:index]
            first, held = index, HeldBytes(example)
    if examples:
        yield examples[first:]
