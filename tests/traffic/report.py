"""The load driver's counts, and the summary that it reports.

Invariant: every request that ended is counted in exactly one of ``succeeded`` and ``failures``. Answers
are kept as numbers only, never as text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_WORD = re.compile(r"\w+|[^\w\s]")
GRAM_WORDS = 4


@dataclass(frozen=True)
class Summary:
    """The result of one run of the load driver.

    Attributes:
        requests: requests that ended, succeeded or failed.
        failures: failed requests, by kind of failure.
        retries: failed attempts that were retried, by kind of failure.
        distinct_4grams: share of an answer's 4-grams that are distinct; mean over answers.
    """

    requests: int
    failures: dict[str, int]
    retries: dict[str, int]
    answer_tokens: int
    tokens_per_second: float
    distinct_4grams: float | None

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


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
        self._distinct_shares: list[float] = []

    def count_success(self, *, tokens: int, answer: str) -> None:
        """Count a finished stream. The text of the answer is not kept."""
        self.succeeded += 1
        self.answer_tokens += tokens
        share = distinct_share(answer)
        if share is not None:
            self._distinct_shares.append(share)

    def summary(self, duration_seconds: float) -> Summary:
        return Summary(
            requests=self.succeeded + self.failures.total(),
            failures=dict(self.failures),
            retries=dict(self.retries),
            answer_tokens=self.answer_tokens,
            tokens_per_second=self.answer_tokens / duration_seconds if duration_seconds > 0 else 0.0,
            distinct_4grams=sum(self._distinct_shares) / len(self._distinct_shares) if self._distinct_shares else None,
        )
