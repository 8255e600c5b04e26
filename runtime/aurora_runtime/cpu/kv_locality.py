"""Keeps the KV slots of a request beside each other, so that a CPU reads them in order.

SGLang hands out free slots in the order in which they became free. Requests that decode together take slots in turn. So
the slots that one of them leaves behind are scattered, and the next requests scatter them further, until hardly any
token lies behind the token before it (tests/unit/cpu/test_kv_locality.py). A CPU then prefetches nothing: an engine
becomes slower with the requests that it answered.

Two changes keep most of the order. Free slots are sorted before they are handed out, as SGLang does where prefill and
decode servers are apart. And the prefix cache gives up half of all slots at once, because a few slots have no order.

Invariant: the slots in use, the free slots and the evictable slots are the same sets as without this module, apart from
entries of the prefix cache that are evicted earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

EVICTED_SHARE: Final = 2
"""The prefix cache evicts at least one slot in so many."""


def sort_free_slots(_result: None, self: Any) -> None:
    """After ``TokenToKVPoolAllocator.clear``, with which each allocator begins: sort what is freed from now on."""
    self.need_sort = True


def evict_many(original: Callable[..., bool | None], self: Any, tree_cache: Any, num_tokens: int) -> bool | None:
    """Around ``BaseTokenToKVPoolAllocator.evict_to_free_tokens``: where something must be evicted, evict more.

    Args:
        num_tokens: slots that must be free.
    """
    free = self.available_size()
    if self.page_size == 1 and num_tokens > free:
        num_tokens = max(num_tokens, free + self.size // EVICTED_SHARE)
    return original(self, tree_cache, num_tokens)
