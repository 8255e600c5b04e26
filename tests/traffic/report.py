"""What the load driver counts, and how it sums up.

Invariant: every request that was sent is in exactly one of ``succeeded`` and ``failures``; answers are kept as numbers
only, never as text.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from aurora_protocol.record import Record

_WORD = re.compile(r"\w+|[^\w\s]")
GRAM = 4


class Percentiles(Record):
    """Seconds."""

    p50: float
    p95: float
    p99: float
    largest: float


class Summary(Record):
    """The driver's account of one run."""

    domain: str
    seconds: float
    requests: int = Field(description="Requests that ended: succeeded or failed.")
    succeeded: int
    failed: int
    failures: dict[str, int] = Field(description="Failed requests by kind.")
    broken: dict[str, int] = Field(description="Answers that broke and were asked for again, by kind.")
    answer_tokens: int
    tokens_per_second: float
    ttft: Percentiles | None = Field(description="Time to the first piece of the answer.")
    gap: Percentiles | None = Field(description="Time between two pieces of a stream, of one or more tokens each.")
    per_token: Percentiles | None = Field(description="Per request: time after the first piece, per further token.")
    distinct_4grams: float | None = Field(description="Distinct 4-grams of an answer over all its 4-grams, mean.")
    distinct_answers: float | None = Field(description="Share of answers that no other answer equals.")


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Nearest-rank percentiles; None without values."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Percentiles(p50=at(0.50), p95=at(0.95), p99=at(0.99), largest=ordered[-1])


def distinct_share(answer: str) -> float | None:
    """Distinct 4-grams of words and signs over all: near 1 for prose, near 0 for a loop; None when too short."""
    words = _WORD.findall(answer)
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else None


class VocabularyCoverage:
    """Counts of one run; not thread-safe, owned by the driver's loop."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failures: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        self.answer_tokens = 0
        self.ttft: list[float] = []
        self.gaps: list[float] = []
        self.per_token: list[float] = []
        self._shares: list[float] = []
        self._answers: Counter[int] = Counter()

    def success(self, *, tokens: int, times: Sequence[float], began: float, answer: str) -> None:
        """A finished stream: ``times`` of its pieces on the clock of ``began``, and its text, which is not kept."""
        self.succeeded += 1
        self.answer_tokens += tokens
        if times:
            self.ttft.append(times[0] - began)
            self.gaps += [b - a for a, b in itertools.pairwise(times)]
            if tokens > 1:
                self.per_token.append((times[-1] - times[0]) / (tokens - 1))
        share = distinct_share(answer)
        if share is not None:
            self._shares.append(share)
        self._answers[hash(answer)] += 1

    @property
    def ended(self) -> int:
        return self.succeeded + self.failures.total()

    def summary(self, domain: str, seconds: float) -> Summary:
        alone = sum(1 for count in self._answers.values() if count == 1)
        return Summary(
            domain=domain,
            seconds=seconds,
            requests=self.ended,
            succeeded=self.succeeded,
            failed=self.failures.total(),
            failures=dict(self.failures),
            broken=dict(self.broken),
            answer_tokens=self.answer_tokens,
            tokens_per_second=self.answer_tokens / seconds if seconds > 0 else 0.0,
            ttft=percentiles(self.ttft),
            gap=percentiles(self.gaps),
            per_token=percentiles(self.per_token),
            distinct_4grams=sum(self._shares) / len(self._shares) if self._shares else None,
            distinct_answers=alone / self.succeeded if self.succeeded else None,
        )
