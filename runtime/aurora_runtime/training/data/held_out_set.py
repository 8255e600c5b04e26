"""Keeps the newest held-out requests, to compare drafts and to review the vocabulary map.

``held_out_split`` decides which requests are held out. They are never trained on.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.settings import DEFAULT_POLICY


class HeldOutSet:
    """The newest held-out requests, one per conversation, bounded in number and in bytes.

    The set also counts the requests whose prompts a measurement can use. A measurement needs no examples, so a request
    counts even if it has none, or if they are not kept.
    """

    def __init__(self, limit: int, limit_bytes: int = DEFAULT_POLICY.held_out_bytes) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self.nbytes = 0
        self._requests: dict[int, tuple[str, tuple[Example, ...]]] = {}
        self._measurable: dict[int, str] = {}
        """The newest requests that a measurement can use, oldest first, each with its newest shard."""
        self.not_counted = ""
        """The newest shard with such requests that a restart did not read again. Empty: there is none."""

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def count(self) -> int | None:
        """How many requests a measurement could use. None: as many as the limit or more, or not known."""
        return None if self.not_counted or len(self._measurable) >= self._limit else len(self._measurable)

    def add(self, request: int, examples: tuple[Example, ...], shard: str = "", *, measurable: bool = True) -> None:
        """Keep ``request`` (the number of a trace) of ``shard``. A restart cannot restore a request without ``shard``.

        A request without examples, or one that alone exceeds the limit of bytes, is not kept.

        Args:
            measurable: a measurement could use the request's prompt (:attr:`RequestTrace.measurable`).
        """
        if measurable:
            self._count(request, shard)
        size = sum(example.nbytes for example in examples)
        if not examples or size > self._limit_bytes:
            return
        self._remove(request)
        self._requests[request] = shard, examples
        self.nbytes += size
        while len(self._requests) > self._limit or self.nbytes > self._limit_bytes:
            self._remove(next(iter(self._requests)))

    def _count(self, request: int, shard: str) -> None:
        self._measurable.pop(request, None)
        self._measurable[request] = shard
        if len(self._measurable) > self._limit:
            del self._measurable[next(iter(self._measurable))]

    def _remove(self, request: int) -> None:
        _, examples = self._requests.pop(request, ("", ()))
        self.nbytes -= sum(example.nbytes for example in examples)

    def drop(self, shards: Collection[str]) -> None:
        """Remove the requests of ``shards``, whose traces may not be kept."""
        for request in [request for request, (shard, _) in self._requests.items() if shard in shards]:
            self._remove(request)
        self._measurable = {request: shard for request, shard in self._measurable.items() if shard not in shards}
        if self.not_counted in shards:  # the older ones have gone with it or before
            self.not_counted = ""

    def newest_first(self) -> list[Example]:
        """All examples, those of the newest request first."""
        return [example for _, examples in reversed(self._requests.values()) for example in examples]

    def shards_to_restore(self) -> tuple[set[str], str]:
        """The shards that a restart has to read again, and :attr:`not_counted` afterwards.

        A restart reads no shard just to count once there is no exact count.
        """
        kept, counted = {shard for shard, _ in self._requests.values()}, set(self._measurable.values())
        if self.count is not None:
            return kept | counted, ""
        return kept, max(counted - kept | {self.not_counted})


def newest_within(newest_first: Sequence[Example], answer_tokens: int) -> Sequence[Example]:
    """The first examples that hold at most ``answer_tokens`` together, but always the very first one."""
    totals = list(itertools.accumulate(example.root_count for example in newest_first))
    return newest_first[: max(1, bisect.bisect_right(totals, answer_tokens))]
