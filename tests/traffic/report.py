"""The load driver's counts, and the summary that it reports.

Invariant: every request that ended is counted in exactly one of ``succeeded`` and ``failures``. Answers
are kept as numbers only, never as text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from aurora_protocol.record import Record

_WORD = re.compile(r"\w+|[^\w\s]")
GRAM_WORDS = 4


class Percentiles(Record):
    """Percentiles of times, in seconds."""

    p50: float
    p95: float
    p99: float
    largest: float


class Summary(Record):
    """The result of one run of the load driver."""

    domain: str
    duration_seconds: float
    requests: int = Field(description="Requests that ended: succeeded or failed.")
    succeeded: int
    failed: int
    failures: dict[str, int] = Field(description="Failed requests, by kind of failure.")
    retries: dict[str, int] = Field(description="Failed attempts that were retried, by kind of failure.")
    answer_tokens: int
    tokens_per_second: float
    ttft_seconds: Percentiles | None = Field(description="Time to the first piece of the answer.")
    gap_seconds: Percentiles | None = Field(
        description="Time between two pieces of a stream. A piece has 1 or more tokens."
    )
    per_token_seconds: Percentiles | None = Field(description="Time per token after the first piece, for each request.")
    distinct_4grams: float | None = Field(
        description="Share of an answer's 4-grams that are distinct; mean over answers."
    )
    distinct_answers: float | None = Field(description="Share of answers that differ from every other answer.")


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Nearest-rank percentiles of ``values``, or None if there are none."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Percentiles(p50=at(0.50), p95=at(0.95), p99=at(0.99), largest=ordered[-1])


def distinct_share(answer: str) -> float | None:
    """The share of distinct 4-grams among all 4-grams of words and punctuation.

    Near 1 for prose and near 0 for text that repeats itself. None for an answer with fewer than 4 words.
    """
    words = _WORD.findall(answer)
    grams = [tuple(words[i : i + GRAM_WORDS]) for i in range(len(words) - GRAM_WORDS + 1)]
    return len(set(grams)) / len(grams) if grams else None


class RequestCounts:
    """The counts of one run. Not thread-safe: only the driver's event loop writes to them."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failures: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.answer_tokens = 0
        self.ttft_seconds: list[float] = []
        self.gap_seconds: list[float] = []
        self.per_token_seconds: list[float] = []
        self._distinct_shares: list[float] = []
        self._answer_hashes: Counter[int] = Counter()

    def count_success(self, *, tokens: int, piece_times: Sequence[float], started: float, answer: str) -> None:
        """Count a finished stream.

        Args:
            piece_times: When each piece of the stream arrived, on the clock of ``started``.
            answer: The text of the answer. It is not kept.
        """
        self.succeeded += 1
        self.answer_tokens += tokens
        if piece_times:
            self.ttft_seconds.append(piece_times[0] - started)
            self.gap_seconds += [b - a for a, b in itertools.pairwise(piece_times)]
            if tokens > 1:
                self.per_token_seconds.append((piece_times[-1] - piece_times[0]) / (tokens - 1))
        share = distinct_share(answer)
        if share is not None:
            self._distinct_shares.append(share)
        self._answer_hashes[hash(answer)] += 1

    @property
    def ended(self) -> int:
        return self.succeeded + self.failures.total()

    def summary(self, domain: str, duration_seconds: float) -> Summary:
        unique = sum(1 for count in self._answer_hashes.values() if count == 1)
        return Summary(
            domain=domain,
            duration_seconds=duration_seconds,
            requests=self.ended,
            succeeded=self.succeeded,
            failed=self.failures.total(),
            failures=dict(self.failures),
            retries=dict(self.retries),
            answer_tokens=self.answer_tokens,
            tokens_per_second=self.answer_tokens / duration_seconds if duration_seconds > 0 else 0.0,
            ttft_seconds=percentiles(self.ttft_seconds),
            gap_seconds=percentiles(self.gap_seconds),
            per_token_seconds=percentiles(self.per_token_seconds),
            distinct_4grams=sum(self._distinct_shares) / len(self._distinct_shares) if self._distinct_shares else None,
            distinct_answers=unique / self.succeeded if self.succeeded else None,
        )
