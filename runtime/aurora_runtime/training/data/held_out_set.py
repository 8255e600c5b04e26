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

    A measurement uses only prompts. So a request without examples is counted too, although no comparison can use it.
    """

    def __init__(self, limit: int, limit_bytes: int = DEFAULT_POLICY.held_out_bytes) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self.nbytes = 0
        self.left_out = False
        """Whether requests were added that are neither kept nor counted."""
        self._requests: dict[int, tuple[str, tuple[Example, ...]]] = {}
        self._without_examples: dict[int, str] = {}  # shards by request

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def count(self) -> int | None:
        """How many held-out requests were added. None once the set is full, because the rest is not counted."""
        count = len(self._requests.keys() | self._without_examples.keys())
        return None if self.left_out or count >= self._limit else count

    def add(self, request: int, examples: tuple[Example, ...], shard: str = "") -> None:
        """Keep ``request`` (the number of a trace) of ``shard``. A restart cannot restore a request without ``shard``.

        A request that alone exceeds the limit of bytes is not kept.
        """
        if not examples:
            if len(self._without_examples) < self._limit or request in self._without_examples:
                self._without_examples[request] = shard
            else:
                self.left_out = True
            return
        size = sum(example.nbytes for example in examples)
        if size > self._limit_bytes:
            self.left_out = True
            return
        self._remove(request)
        self._requests[request] = shard, examples
        self.nbytes += size
        while len(self._requests) > self._limit or self.nbytes > self._limit_bytes:
            self._remove(next(iter(self._requests)))
            self.left_out = True

    def _remove(self, request: int) -> None:
        _, examples = self._requests.pop(request, ("", ()))
        self.nbytes -= sum(example.nbytes for example in examples)

    def drop(self, shards: Collection[str]) -> None:
        """Remove the requests of ``shards``, whose traces may not be kept."""
        for request in [request for request, (shard, _) in self._requests.items() if shard in shards]:
            self._remove(request)
        for request in [request for request, shard in self._without_examples.items() if shard in shards]:
            del self._without_examples[request]

    def newest_first(self) -> list[Example]:
        """All examples, those of the newest request first."""
        return [example for _, examples in reversed(self._requests.values()) for example in examples]

    def shards(self) -> set[str]:
        """The shards that the requests came from, those without examples only as long as they are counted."""
        kept = {shard for shard, _ in self._requests.values()}
        return kept if self.left_out else kept | set(self._without_examples.values())


def newest_within(newest_first: Sequence[Example], answer_tokens: int) -> Sequence[Example]:
    """The first examples that hold at most ``answer_tokens`` together, but always the very first one."""
    totals = list(itertools.accumulate(example.root_count for example in newest_first))
    return newest_first[: max(1, bisect.bisect_right(totals, answer_tokens))]
