"""Restores hidden states that a prefix-cache hit kept out of a trace, from another trace with the same prefix.

The engine computes no states for a prefix in its cache. So a trace starts after the prefix that it shares with an
earlier request: a system prompt, or the conversation so far. The served draft attends to that prefix nevertheless, and
the trained draft must too. Invariant: a state depends only on the tokens up to it, so states are borrowed only where
all tokens up to them are equal. The bank is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.kept_states import HeldBytes, KeptStates


@dataclass(frozen=True)
class _Lender:
    """The part of a trace that the bank keeps."""

    tokens: Tensor  # [L]
    states: KeptStates


class PrefixBank:
    """The most recently used traces of one target. Their states complete later traces."""

    def __init__(self, limit_bytes: int, limit_traces: int) -> None:
        self._limit_bytes, self._limit_traces = limit_bytes, limit_traces
        self._traces: OrderedDict[int, _Lender] = OrderedDict()
        self._shards: dict[int, str] = {}
        self._added = 0
        self._held = HeldBytes()

    def complete(self, trace: RequestTrace, shard: str = "") -> KeptStates:
        """The states of ``trace``, after those that it lacks, as far back as they are known.

        Keeps them for later calls, until the trace's ``shard`` is dropped.
        """
        states = KeptStates.of(trace)
        lender_number = self._find_lender(trace) if trace.hidden_start else None
        if lender_number is not None:
            states = self._traces[lender_number].states.lent_to(states)
            self._traces.move_to_end(lender_number)
        self._remember(_Lender(trace.tokens.clone(), states), shard)
        return states

    def drop(self, shards: Collection[str]) -> None:
        """Forget the traces of ``shards``, which may not be kept."""
        for number in [number for number, shard in self._shards.items() if shard in shards]:
            self._held.remove(self._traces.pop(number))
            del self._shards[number]

    def _find_lender(self, trace: RequestTrace) -> int | None:
        """The number of the trace with the same prefix whose states reach furthest back.

        Among equals the least recently used trace is taken.
        """
        start, lender = trace.hidden_start, None
        earliest = start
        for number, kept in self._traces.items():
            covered = kept.states.start + len(kept.states)
            if (
                kept.states.start < earliest
                and covered >= start
                and torch.equal(kept.tokens[:start], trace.tokens[:start])
            ):
                lender, earliest = number, kept.states.start
        return lender

    def _remember(self, lender: _Lender, shard: str) -> None:
        self._traces[self._added] = lender
        self._shards[self._added] = shard
        self._added += 1
        self._held.add(lender)
        while self._traces and (self._held.total > self._limit_bytes or len(self._traces) > self._limit_traces):
            number, dropped = self._traces.popitem(last=False)
            del self._shards[number]
            self._held.remove(dropped)
