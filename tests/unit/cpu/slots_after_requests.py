"""Runs SGLang's own allocator and prefix cache through requests that decode together, without an engine.

``python -m tests.unit.cpu.slots_after_requests`` prints a JSON object. A process of its own, because SGLang's import
loads torch, stand-in and plugins.
"""

from __future__ import annotations

import json
import random
from array import array
from typing import Any

import torch
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.plugins.hook_registry import HookRegistry

from aurora_runtime.cpu import wrappers
from aurora_runtime.cpu.cpu_plugin import engine_hooks
from aurora_runtime.sglang_uses import register

SLOTS = 4096
CONCURRENCY = 4
REQUESTS = 800
RESERVED = 6
"""Slots that a request holds beyond its tokens, as with speculation."""


def keep_order() -> None:
    """Change SGLang's allocator and prefix cache with the CPU engine's own hooks."""
    register([hook for hook in engine_hooks() if hook.wrapper.__module__ == wrappers.__name__])
    HookRegistry.apply_hooks()


def new_cache() -> Any:
    allocator = TokenToKVPoolAllocator(SLOTS, torch.int64, "cpu", None, need_sort=False)
    return RadixCache.create_simulated(mock_allocator=allocator)


def take(cache: Any, count: int) -> torch.Tensor:
    cache.token_to_kv_pool_allocator.evict_to_free_tokens(cache, count)
    slots: torch.Tensor | None = cache.token_to_kv_pool_allocator.alloc(count)
    assert slots is not None
    return slots


def keep(cache: Any, number: int, slots: torch.Tensor) -> None:
    """Put an answered request, of tokens that no other request has, into the prefix cache."""
    tokens = array("q", range(number * SLOTS, number * SLOTS + len(slots)))
    cache.insert(InsertParams(key=RadixKey(tokens), value=slots.clone()))


def neighbours(cache: Any) -> float:
    """The share of tokens that lie behind the token before them, over the last tenth of the requests."""
    rng, begun, shares = random.Random(1), 0, list[float]()  # noqa: S311 - reproducible load, no secret
    running = list[tuple[int, torch.Tensor, int, int]]()  # number, slots, tokens, tokens to come
    while begun < REQUESTS or running:
        while len(running) < CONCURRENCY and begun < REQUESTS:
            prompt = rng.randint(60, 240)
            running.append((begun, take(cache, prompt), prompt, rng.randint(20, 64)))
            begun += 1
        still = []
        for number, slots, tokens, left in running:
            if (missing := tokens + RESERVED - len(slots)) > 0:
                slots = torch.cat([slots, take(cache, missing)])
            made = rng.randint(1, 3)
            if left > made:
                still.append((number, slots, tokens + made, left - made))
                continue
            slots, unused = slots[: tokens + left], slots[tokens + left :]
            shares.append(float((slots.diff() == 1).double().mean()))
            cache.token_to_kv_pool_allocator.free(unused)
            keep(cache, number, slots)
        running = still
    last = shares[-REQUESTS // 10 :]
    return sum(last) / len(last)


def known_slots(cache: Any) -> list[int]:
    """Every slot that is free or in the prefix cache."""
    allocator = cache.token_to_kv_pool_allocator
    found: list[int] = torch.cat([allocator.free_pages, allocator.release_pages, cache.all_values_flatten()]).tolist()
    return sorted(found)


def evictable_after_each(counts: list[int]) -> list[int]:
    """How much of 1,000 cached tokens is left after so many further slots were taken."""
    cache = new_cache()
    keep(cache, 0, take(cache, 1000))
    left = []
    for count in counts:
        take(cache, count)
        left.append(cache.evictable_size())
    return left


def main() -> None:
    stock = neighbours(new_cache())
    keep_order()
    ordered = new_cache()
    print(
        json.dumps(
            {
                "stock": stock,
                "ordered": neighbours(ordered),
                "all known": known_slots(ordered) == list(range(1, SLOTS + 1)),
                "evictable": evictable_after_each([SLOTS - 1000, 1]),
            }
        )
    )


if __name__ == "__main__":
    main()
