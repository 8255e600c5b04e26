"""Restores hidden states that a prefix-cache hit kept out of a trace, from another trace with the same prefix.

The engine computes no states for a prefix in its cache. So a trace starts after the prefix that it shares with an
earlier request: a system prompt, or the conversation so far. The served draft attends to that prefix nevertheless, and
the trained draft must too. Invariant: a state depends only on the tokens up to it, so states are borrowed only where
all tokens up to them are equal. The bank is bounded.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace


@dataclass(frozen=True)
class _Lender:
    """The part of a trace that the bank keeps: tokens ``[L]``, and states ``[S, H3]`` from ``hidden_start`` on."""

    hidden_start: int
    tokens: Tensor
    hidden: Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.hidden.nbytes


class PrefixBank:
    """The most recently used traces of one target. Their states complete later traces."""

    def __init__(self, limit_bytes: int, limit_traces: int) -> None:
        self._limit_bytes, self._limit_traces = limit_bytes, limit_traces
        self._traces: OrderedDict[int, _Lender] = OrderedDict()
        self._shards: dict[int, str] = {}
        self._added = 0
        self._bytes = 0

    def complete(self, trace: RequestTrace, shard: str = "") -> RequestTrace:
        """``trace`` with the states that it lacks, as far back as they are known.

        Keeps ``trace`` for later calls, until its ``shard`` is dropped.
        """
        lender_number = self._find_lender(trace) if trace.hidden_start else None
        if lender_number is not None:
            lender = self._traces[lender_number]
            self._traces.move_to_end(lender_number)
            borrowed = lender.hidden[: trace.hidden_start - lender.hidden_start]
            trace = dataclasses.replace(
                trace, hidden_start=lender.hidden_start, hidden=torch.cat([borrowed, trace.hidden])
            )
        self._remember(trace, shard)
        return trace

    def drop(self, shards: Collection[str]) -> None:
        """Forget the traces of ``shards``, which may not be kept."""
        for number in [number for number, shard in self._shards.items() if shard in shards]:
            self._bytes -= self._traces.pop(number).nbytes
            del self._shards[number]

    def _find_lender(self, trace: RequestTrace) -> int | None:
        """The number of the trace with the same prefix whose states reach furthest back.

        Among equals the least recently used trace is taken.
        """
        start, lender = trace.hidden_start, None
        earliest = start
        for number, kept in self._traces.items():
            covered = kept.hidden_start + kept.hidden.shape[0]
            if (
                kept.hidden_start < earliest
                and covered >= start
                and torch.equal(kept.tokens[:start], trace.tokens[:start])
            ):
                lender, earliest = number, kept.hidden_start
        return lender

    def _remember(self, trace: RequestTrace, shard: str) -> None:
        """Copy what a later trace may borrow, so that the memory of the whole shard can be freed."""
        own = _Lender(trace.hidden_start, trace.tokens.clone(), trace.hidden.clone())
        self._traces[self._added] = own
        self._shards[self._added] = shard
        self._added += 1
        self._bytes += own.nbytes
        while self._traces and (self._bytes > self._limit_bytes or len(self._traces) > self._limit_traces):
            number, dropped = self._traces.popitem(last=False)
            del self._shards[number]
            self._bytes -= dropped.nbytes
