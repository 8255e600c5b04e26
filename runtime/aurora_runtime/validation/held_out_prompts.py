"""Chooses held-out prompts of recent traffic: a candidate is measured on them, and was never trained on them.

Invariants: only held-out requests are chosen, those of the newest shards first. The same shards give the same prompts
in the same order. Prompts are token ids, and leave this process only as requests to the engines under test.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from aurora_runtime.errors import MeasurementError
from aurora_runtime.traces import RequestTrace, decode
from aurora_store import Registry
from aurora_store.errors import ObjectMissing

log = logging.getLogger(__name__)

MAX_SHARDS = 256
"""Bounds the download: at most about 256 x 16k positions of hidden states."""
MAX_PROMPT_TOKENS = 4096
"""Longer prompts are not measured with."""


@dataclass(frozen=True)
class Prompt:
    """The prompt of one held-out request: the hash that decided the split, and the token ids that the engine saw."""

    request: int
    tokens: tuple[int, ...]


def held_out_prompts(registry: Registry, lineage: int, *, wanted: int, needed: int) -> tuple[Prompt, ...]:
    """Up to ``wanted`` distinct prompts, newest shards first.

    Raises :class:`MeasurementError` when there are fewer than ``needed``. A small sample would pass or reject by
    chance, so the operator retries when there is more traffic.
    """
    keys = registry.newest_shards(lineage, MAX_SHARDS)
    prompts: dict[int, Prompt] = {}
    shards_read = 0
    for key in keys:
        if len(prompts) >= wanted:
            break
        try:
            data = registry.shard(key)[1]
        except ObjectMissing:
            continue  # deleted since the listing, because the trainer bounds the store
        _add_held_out(decode(data), wanted, prompts)
        shards_read += 1
    log.info("prompts: %d distinct held-out prompts in %d of %d shards", len(prompts), shards_read, len(keys))
    if len(prompts) < needed:
        raise MeasurementError(
            f"{len(prompts)} distinct held-out prompts in the newest {shards_read} shards; {needed} are needed: "
            "wait for traffic"
        )
    return tuple(prompts.values())


def _add_held_out(traces: Iterable[RequestTrace], wanted: int, prompts: dict[int, Prompt]) -> None:
    """Add the held-out prompts of ``traces``, in their order, until there are ``wanted``."""
    for trace in traces:
        if len(prompts) >= wanted:
            return
        if trace.held_out and trace.request not in prompts and 0 < trace.prompt_length <= MAX_PROMPT_TOKENS:
            prompts[trace.request] = Prompt(trace.request, tuple(trace.tokens[: trace.prompt_length].tolist()))


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over the sorted hashes of the prompts: equal when two measurements used the same prompts."""
    text = b"".join(number.to_bytes(8, "big") for number in sorted(prompt.request for prompt in prompts))
    return hashlib.sha256(text).hexdigest()
