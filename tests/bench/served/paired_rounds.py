"""Measures all arms in paired rounds on the same fresh prompts, and compares their answers.

Invariants:

- No arm is asked a prompt twice, so no arm has seen an answer before.
- Within a round and a concurrency, the arms answer the same prompts right after each other. Their order rotates, by the
  validator's own schedule.
- Before a batch each arm answers warm-up requests that it never saw, and that no batch has. A warm-up of known
  requests would teach the controller, and NGRAM's index, that lookup guesses everything.
- Answers are compared between rounds, not while a batch runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.bench.served.servers import OFF, Arm
from tests.bench.stream_timing import StepTiming
from tests.traffic.report import distinct_share

from aurora_protocol import evidence_records
from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate
from aurora_protocol.gate import paired_ratio
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.answer_equality import EqualityCounter
from aurora_runtime.validation.load_client import Answer, BatchResult
from aurora_runtime.validation.rounds import Batch, batches


@dataclass(frozen=True)
class MeasurementPlan:
    """The arms to measure, and how often to measure them.

    Attributes:
        prompts_per_worker: prompts per batch and unit of concurrency.
        near_tie_gap: largest gap of two logits at which greedy answers may diverge.
    """

    arms: tuple[Arm, ...]
    concurrencies: tuple[int, ...]
    rounds: int
    prompts_per_worker: int
    near_tie_gap: float

    @property
    def prompts_needed(self) -> int:
        """The number of distinct prompts. With fewer, a prompt would be asked twice."""
        return self.rounds * self.prompts_per_worker * sum(self.concurrencies)

    @property
    def warmups_needed(self) -> int:
        """The number of distinct warm-up requests. With fewer, an arm would be asked one twice."""
        return self.rounds * sum(self.concurrencies)

    def first_warmup(self, round_number: int, concurrency: int) -> int:
        """The first warm-up request before the batches of a round and a concurrency. There are ``concurrency``."""
        before = sum(each for each in self.concurrencies if each < concurrency)
        return round_number * sum(self.concurrencies) + before

    def batches_of(self, round_number: int) -> list[Batch[Arm]]:
        """The batches of a round, in their order."""
        return batches(
            round_number,
            self.arms,
            (),
            self.concurrencies,
            prompts_per_worker=self.prompts_per_worker,
            available=self.prompts_needed,
        )


@dataclass(frozen=True)
class BatchCounts:
    """The outcome of one batch. ``verify_rounds`` is None without speculation."""

    requests: int
    tokens: int
    seconds: float
    verify_rounds: int | None
    failures: int


@dataclass(frozen=True)
class Sample:
    """One batch of one arm.

    Attributes:
        milliseconds_per_step: for each warm-up stream before the batch. With speculation, a step is a verify round.
    """

    arm: str
    concurrency: int
    round: int
    counts: BatchCounts
    milliseconds_per_step: tuple[float, ...]


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one concurrency, over all rounds.

    Attributes:
        acceptance_length: answer tokens per verify round; None without speculation. An answer's first token comes from
            the prefill and belongs to no round.
        milliseconds_per_step: median over all warm-up streams.
    """

    tokens_per_second: float
    acceptance_length: float | None
    milliseconds_per_step: float


@dataclass(frozen=True)
class Measured:
    """All samples, the comparison of the answers, and the diversity of the answers without speculation.

    Attributes:
        equality: per arm with speculation, the comparison of its answers with those without speculation.
        distinct_4grams: mean share of distinct 4-grams in an answer; None when every answer is too short.
        distinct_answers: number of distinct answers over the number of answers.
    """

    samples: tuple[Sample, ...]
    equality: Mapping[str, AnswerEquality]
    distinct_4grams: float | None
    distinct_answers: float

    def summary(self, arm: str, concurrency: int) -> ArmSummary:
        samples = [s for s in self.samples if s.arm == arm and s.concurrency == concurrency]
        tokens = sum(s.counts.tokens for s in samples)
        rounds = sum(s.counts.verify_rounds or 0 for s in samples)
        first_tokens = sum(s.counts.requests - s.counts.failures for s in samples)
        return ArmSummary(
            tokens_per_second=tokens / sum(s.counts.seconds for s in samples),
            acceptance_length=(tokens - first_tokens) / rounds if rounds else None,
            milliseconds_per_step=statistics.median(ms for s in samples for ms in s.milliseconds_per_step),
        )

    def ratio(self, arm: str, other: str, concurrency: int) -> RatioEstimate | None:
        """Throughput of ``arm`` over that of ``other``, paired by round, with the gate's interval."""
        roles = {arm: evidence_records.Arm.CANDIDATE, other: evidence_records.Arm.OFF}
        paired = [
            evidence_records.Sample(
                arm=roles[s.arm],
                concurrency=s.concurrency,
                round=s.round,
                requests=s.counts.requests,
                tokens=s.counts.tokens,
                seconds=s.counts.seconds,
            )
            for s in self.samples
            if s.arm in roles
        ]
        return paired_ratio(paired, evidence_records.Arm.CANDIDATE, evidence_records.Arm.OFF, concurrency)


class MeasuredServers(Protocol):
    """What :func:`measure` needs from the servers."""

    async def prepare(self, arm: Arm, concurrency: int, first_warmup: int) -> list[StepTiming]: ...

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult: ...

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float: ...


async def measure(
    servers: MeasuredServers,
    plan: MeasurementPlan,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
) -> Measured:
    """Measure ``plan`` on ``prompts``.

    Args:
        prompts: token ids of at least :attr:`MeasurementPlan.prompts_needed` prompts, all distinct.
        decode: turns an answer's tokens into text.

    Raises:
        MeasurementError: a request without speculation failed.
    """
    equality_counts = {
        arm.name: EqualityCounter(evidence_records.Arm.CANDIDATE, plan.near_tie_gap)
        for arm in plan.arms
        if arm.server != OFF
    }
    samples, off_answers = list[Sample](), dict[int, Answer]()
    for number in range(plan.rounds):
        results = list[tuple[Batch[Arm], BatchResult]]()
        for batch in plan.batches_of(number):
            first_warmup = plan.first_warmup(number, batch.concurrency)
            timings = await servers.prepare(batch.arm, batch.concurrency, first_warmup)
            result = await servers.run(batch.arm, [prompts[i] for i in batch.prompts], batch.concurrency)
            if batch.arm.server == OFF:
                if result.failures:
                    raise MeasurementError(f"{result.failures} requests failed without speculation")
                off_answers |= {i: a for i, a in zip(batch.prompts, result.answers, strict=True) if a is not None}
            samples.append(_sample(number, batch, result, timings))
            results.append((batch, result))
        for batch, result in results:
            if batch.arm.name in equality_counts:
                count = equality_counts[batch.arm.name]
                for index, answer in zip(batch.prompts, result.answers, strict=True):
                    if answer is not None:
                        off = off_answers[index].tokens
                        await count.compare(index, prompts[index], off, answer.tokens, servers.margin)
        print(f"round {number + 1} of {plan.rounds}: {_describe_speeds(samples, number)}", flush=True)
    texts = [decode(answer.tokens) for answer in off_answers.values()]
    shares = [share for share in map(distinct_share, texts) if share is not None]
    return Measured(
        samples=tuple(samples),
        equality={name: count.record() for name, count in equality_counts.items()},
        distinct_4grams=statistics.fmean(shares) if shares else None,
        distinct_answers=len(set(texts)) / len(texts),
    )


def _sample(number: int, batch: Batch[Arm], result: BatchResult, timings: Sequence[StepTiming]) -> Sample:
    counts = BatchCounts(
        requests=len(batch.prompts),
        tokens=result.tokens,
        seconds=result.seconds,
        verify_rounds=result.verify_rounds,
        failures=result.failures,
    )
    milliseconds = tuple(timing.milliseconds_per_step for timing in timings)
    return Sample(batch.arm.name, batch.concurrency, number, counts, milliseconds)


def _describe_speeds(samples: Sequence[Sample], number: int) -> str:
    speeds = [
        f"{s.arm} at {s.concurrency} {s.counts.tokens / s.counts.seconds:.1f}" for s in samples if s.round == number
    ]
    return ", ".join(speeds) + " tok/s"
