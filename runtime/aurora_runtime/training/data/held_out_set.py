"""Keeps the newest held-out requests, to compare drafts and to review the vocabulary map.

``held_out_split`` decides which requests are held out. They are never trained on.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.kept_states import HeldBytes
from aurora_runtime.training.settings import DEFAULT_POLICY


class HeldOutSet:
    """The newest held-out requests, one per conversation, bounded in number and in bytes.

    The set also counts the requests whose prompts a measurement can use. A measurement needs no examples, so a request
    counts even if it has none, or if they are not kept.
    """

    def __init__(
        self,
        limit: int,
        limit_bytes: int = DEFAULT_POLICY.held_out_bytes,
        limit_counted: int = DEFAULT_POLICY.counted_requests,
    ) -> None:
        self._limit, self._limit_bytes, self._limit_counted = limit, limit_bytes, limit_counted
        self._held = HeldBytes()
        self._requests: dict[int, tuple[str, tuple[Example, ...]]] = {}
        self.measurable: dict[int, str] = {}
        """The newest requests that a measurement can use, oldest first, each with its newest shard."""

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def nbytes(self) -> int:
        return self._held.total

    @property
    def count(self) -> int | None:
        """How many requests a measurement could use. None: as many as are counted, or more."""
        return None if len(self.measurable) >= self._limit_counted else len(self.measurable)

    def add(self, request: int, examples: tuple[Example, ...], shard: str = "", *, measurable: bool = True) -> None:
        """Keep ``request`` (the number of a trace) of ``shard``. A restart cannot restore a request without ``shard``.

        A request without examples, or one that alone exceeds the limit of bytes, is not kept.

        Args:
            measurable: a measurement could use the request's prompt (:attr:`RequestTrace.measurable`).
        """
        if measurable:
            self._count(request, shard)
        if not examples or HeldBytes(examples).total > self._limit_bytes:
            return
        self._remove(request)
        self._requests[request] = shard, examples
        self._held.add(examples)
        while len(self._requests) > self._limit or self.nbytes > self._limit_bytes:
            self._remove(next(iter(self._requests)))

    def _count(self, request: int, shard: str) -> None:
        self.measurable.pop(request, None)
        self.measurable[request] = shard
        if len(self.measurable) > self._limit_counted:
            del self.measurable[next(iter(self.measurable))]

    def _remove(self, request: int) -> None:
        _, examples = self._requests.pop(request, ("", ()))
        self._held.remove(examples)

    def drop(self, shards: Collection[str]) -> None:
        """Remove the requests of ``shards``, whose traces may not be kept."""
        for request in [request for request, (shard, _) in self._requests.items() if shard in shards]:
            self._remove(request)
        self.measurable = {request: shard for request, shard in self.measurable.items() if shard not in shards}

    def newest_first(self) -> list[Example]:
        """All examples, those of the newest request first."""
        return [example for _, examples in reversed(self._requests.values()) for example in examples]

    def shards_to_restore(self) -> set[str]:
        """The shards that a restart has to read again, because they hold the examples that are kept."""
        return {shard for shard, _ in self._requests.values()}


def newest_within(newest_first: Sequence[Example], answer_tokens: int) -> Sequence[Example]:
    """The first examples that hold at most ``answer_tokens`` together, but always the very first one."""
    totals = list(itertools.accumulate(example.root_count for example in newest_first))
    return newest_first[: max(1, bisect.bisect_right(totals, answer_tokens))]
