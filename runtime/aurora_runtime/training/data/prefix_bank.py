"""Hidden states that a prefix-cache hit kept from a trace, found again in another trace.

The engine does not compute what its cache holds, so a trace starts behind the prefix that it shares with an earlier
request: a system prompt, or the conversation so far. The served draft attends to that prefix all the same, and so must
the trained one. Invariant: a state depends on the tokens up to it and on nothing else, so states are borrowed only
where all tokens up to them are equal. What is kept is bounded.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Final

import torch

from aurora_runtime.traces import RequestTrace

LIMIT_BYTES: Final = 256 << 20
LIMIT_TRACES: Final = 256


class PrefixBank:
    """The most recently useful traces of one engine's target, to complete others with."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES, limit_traces: int = LIMIT_TRACES) -> None:
        self._limit_bytes, self._limit_traces = limit_bytes, limit_traces
        self._kept: OrderedDict[int, RequestTrace] = OrderedDict()
        self._added = 0
        self._bytes = 0

    def complete(self, trace: RequestTrace) -> RequestTrace:
        """``trace`` with its missing states in front, as far back as they are known; and remember it for others."""
        start = trace.hidden_start
        lender = None
        if start:
            for number, kept in self._kept.items():
                covered = kept.hidden_start + kept.hidden.shape[0]
                if (
                    kept.hidden_start < (start if lender is None else self._kept[lender].hidden_start)
                    and covered >= start
                    and torch.equal(kept.tokens[:start], trace.tokens[:start])
                ):
                    lender = number
        if lender is not None:
            kept = self._kept[lender]
            self._kept.move_to_end(lender)
            borrowed = kept.hidden[: start - kept.hidden_start].to(trace.hidden.dtype)
            trace = dataclasses.replace(
                trace, hidden_start=kept.hidden_start, hidden=torch.cat([borrowed, trace.hidden])
            )
        self._keep(trace)
        return trace

    def _keep(self, trace: RequestTrace) -> None:
        """Remember ``trace`` alone, not the shard whose memory it may share."""
        own = dataclasses.replace(trace, tokens=trace.tokens.clone(), hidden=trace.hidden.clone())
        self._kept[self._added] = own
        self._added += 1
        self._bytes += _size(own)
        while len(self._kept) > 1 and (self._bytes > self._limit_bytes or len(self._kept) > self._limit_traces):
            _, gone = self._kept.popitem(last=False)
            self._bytes -= _size(gone)


def _size(trace: RequestTrace) -> int:
    return trace.hidden.numel() * trace.hidden.element_size()
