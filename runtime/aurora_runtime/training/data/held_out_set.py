"""Keeps the newest held-out requests, to compare drafts and to review the vocabulary map.

``held_out_split`` decides which requests are held out. They are never trained on.
"""

from __future__ import annotations

from collections.abc import Collection

from aurora_runtime.training.data.examples import Example


class HeldOutSet:
    """The newest held-out requests, one per prompt, bounded in number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._requests: dict[int, tuple[str, tuple[Example, ...]]] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: int, examples: tuple[Example, ...], shard: str = "") -> None:
        """Keep ``request`` (a prompt's hash) of ``shard``. A restart cannot restore a request without ``shard``."""
        if not examples:
            return
        self._requests.pop(request, None)
        self._requests[request] = shard, examples
        while len(self._requests) > self._limit:
            del self._requests[next(iter(self._requests))]

    def drop(self, shards: Collection[str]) -> None:
        """Remove the requests of ``shards``, whose traces may not be kept."""
        self._requests = {request: kept for request, kept in self._requests.items() if kept[0] not in shards}

    def newest_first(self) -> list[Example]:
        """All examples, those of the newest request first."""
        return [example for _, examples in reversed(self._requests.values()) for example in examples]

    def shards(self) -> set[str]:
        """The shards that the requests came from."""
        return {shard for shard, _ in self._requests.values()}
