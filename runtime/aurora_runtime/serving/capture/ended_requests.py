"""Counts the ended requests of clients in SGLang's scheduler: the sums from which live traffic judges a draft.

Invariants: the sums take the same memory however many requests end. A request counts once, with all of its rounds. A
request that says nothing about the served draft does not count: one that ended in its prefill, one that asked for no
speculation, and any that ends while a measurement has the pod (its requests carry drafts on trial).

This module imports neither torch nor SGLang: requests are read by attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aurora_protocol.agent_api import MAX_SQUARE, LiveCounters
from aurora_runtime.request_wish import wish_of


class EndedRequests:
    """The sums of one scheduler process. The scheduler's thread adds, and the writer's thread reads.

    Args:
        is_withdrawn: whether a measurement has the pod. Asked once for each request that ends.
    """

    def __init__(self, is_withdrawn: Callable[[], bool]) -> None:
        self._is_withdrawn = is_withdrawn
        self._sums = (0,) * 6  # replaced as one, so that a reader sees the sums of the same requests

    def add(self, req: Any) -> None:
        """A request leaves the engine. One that will be prefilled again has not ended.

        SGLang counts a request's verify rounds, those without proposals included, and keeps the count over a
        retraction (sglang/srt/managers/scheduler_components/batch_result_processor.py:832).
        """
        rounds = req.spec_verify_ct
        if not req.finished() or rounds == 0 or not wish_of(req).speculate or self._is_withdrawn():
            return
        length = len(req.output_ids) if req.finished_len is None else req.finished_len
        tokens = max(0, length - 1)
        new = (1, tokens, rounds, tokens * tokens, tokens * rounds, rounds * rounds)
        self._sums = tuple(total + more for total, more in zip(self._sums, new, strict=True))

    def counters(self) -> LiveCounters:
        """The sums since the engine started."""
        requests, tokens, rounds, *squares = self._sums
        tokens_squared, tokens_by_rounds, rounds_squared = (min(square, MAX_SQUARE) for square in squares)
        return LiveCounters(
            requests=requests,
            tokens=tokens,
            rounds=rounds,
            tokens_squared=tokens_squared,
            tokens_by_rounds=tokens_by_rounds,
            rounds_squared=rounds_squared,
        )
