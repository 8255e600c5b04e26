"""Held-out prompts of recent traffic: what a candidate is measured on, and was never trained on.

Invariants: only requests on the held-out side of the split; newest shards first; the same shards give the same prompts
in the same order. Prompts are token ids and never leave this process but as requests to its own engines.
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
"""Bounds the download: about 256 x 16k positions of hidden states at most."""
MAX_PROMPT_TOKENS = 4096


@dataclass(frozen=True)
class Prompt:
    """One held-out request: its split hash and the token ids that the engine saw."""

    request: int
    tokens: tuple[int, ...]


def select(traces: Iterable[RequestTrace], wanted: int, seen: dict[int, Prompt]) -> None:
    """Add held-out prompts of ``traces`` to ``seen`` (in order of arrival) until it has ``wanted``."""
    for trace in traces:
        if len(seen) >= wanted:
            return
        if trace.held_out and trace.request not in seen and 0 < trace.prompt_length <= MAX_PROMPT_TOKENS:
            seen[trace.request] = Prompt(trace.request, tuple(trace.tokens[: trace.prompt_length].tolist()))


def held_out_prompts(registry: Registry, lineage: int, *, wanted: int, needed: int) -> tuple[Prompt, ...]:
    """Up to ``wanted`` distinct prompts, newest shards first.

    Raises :class:`MeasurementError` when there are fewer than ``needed``: a small sample would flatter or condemn by
    chance, so the operator has to try again when there is more traffic.
    """
    keys = registry.newest_shards(lineage, MAX_SHARDS)
    seen: dict[int, Prompt] = {}
    read = 0
    for key in keys:
        if len(seen) >= wanted:
            break
        try:
            data = registry.shard(key)[1]
        except ObjectMissing:
            continue  # deleted since the listing: the trainer keeps the store bounded
        select(decode(data), wanted, seen)
        read += 1
    log.info("prompts: %d distinct held-out prompts in %d of %d shards", len(seen), read, len(keys))
    if len(seen) < needed:
        raise MeasurementError(
            f"{len(seen)} distinct held-out prompts in the newest {read} shards; {needed} are needed: wait for traffic"
        )
    return tuple(seen.values())


def digest(prompts: Iterable[Prompt]) -> str:
    """SHA-256 over the sorted prompt hashes: tells whether two measurements used the same prompts."""
    text = b"".join(number.to_bytes(8, "big") for number in sorted(prompt.request for prompt in prompts))
    return hashlib.sha256(text).hexdigest()
