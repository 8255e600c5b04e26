"""Paired rounds of all arms on the same fresh prompts, and whether all said what the server without speculation did.

Invariants: no prompt is asked twice of one arm, so nobody has seen an answer before; within a round
and a concurrency the arms answer the same prompts one right after the other, and their order rotates (the validator's
own schedule); comparing answers happens between rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.bench.served.servers import OFF, Arm
from tests.bench.stream_timing import StepTiming as Timing
from tests.traffic.report import distinct_share

from aurora_protocol import evidence_records
from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate
from aurora_protocol.gate import paired_ratio
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.answer_equality import EqualityCount
from aurora_runtime.validation.load_client import Answer, BatchResult
from aurora_runtime.validation.round_schedule import Batch, batches


@dataclass(frozen=True)
class Plan:
    """What is measured how often: ``per_worker`` prompts per unit of concurrency and batch."""

    arms: tuple[Arm, ...]
    concurrencies: tuple[int, ...]
    rounds: int
    per_worker: int
    near_tie: float
    """Largest gap of two logits at which greedy answers may part."""

    @property
    def prompts_needed(self) -> int:
        """Distinct prompts without which one would be asked twice."""
        return self.rounds * self.per_worker * sum(self.concurrencies)

    def turns(self, number: int) -> list[Batch[Arm]]:
        """The batches of round ``number`` in their order."""
        return batches(
            number, self.arms, self.concurrencies, prompts_per_worker=self.per_worker, available=self.prompts_needed
        )


@dataclass(frozen=True)
class Sample:
    """One batch. ``round_ms`` are milliseconds per round (per step without speculation) of the streams before it."""

    arm: str
    concurrency: int
    round: int
    requests: int
    tokens: int
    seconds: float
    verify_rounds: int | None
    failures: int
    round_ms: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """One arm at one concurrency, over all rounds."""

    tokens_per_second: float
    accept_length: float | None  # tokens per verify round; an answer's first is the prompt's. None without speculation
    round_ms: float


@dataclass(frozen=True)
class Measured:
    """All samples, and what became of the answers: compared with off's, and off's own variety."""

    samples: tuple[Sample, ...]
    equality: Mapping[str, AnswerEquality]
    distinct_4grams: float | None
    distinct_answers: float

    def cell(self, arm: str, concurrency: int) -> Cell:
        mine = [s for s in self.samples if s.arm == arm and s.concurrency == concurrency]
        tokens, rounds = sum(s.tokens for s in mine), sum(s.verify_rounds or 0 for s in mine)
        firsts = sum(s.requests - s.failures for s in mine)
        return Cell(
            tokens_per_second=tokens / sum(s.seconds for s in mine),
            accept_length=(tokens - firsts) / rounds if rounds else None,
            round_ms=statistics.median(ms for s in mine for ms in s.round_ms),
        )

    def ratio(self, arm: str, other: str, concurrency: int) -> RatioEstimate | None:
        """Throughput of ``arm`` over that of ``other``, paired by round, with the gate's interval."""
        sides = {arm: evidence_records.Arm.CANDIDATE, other: evidence_records.Arm.OFF}
        paired = [
            evidence_records.Sample(
                arm=sides[s.arm],
                concurrency=s.concurrency,
                round=s.round,
                requests=s.requests,
                tokens=s.tokens,
                seconds=s.seconds,
            )
            for s in self.samples
            if s.arm in sides
        ]
        return paired_ratio(paired, evidence_records.Arm.CANDIDATE, evidence_records.Arm.OFF, concurrency)


class Bench(Protocol):
    """The servers under measurement."""

    async def ready(self, arm: Arm, concurrency: int) -> list[Timing]: ...

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult: ...

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float: ...


async def measure(
    bench: Bench, plan: Plan, prompts: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], str]
) -> Measured:
    """Measure ``plan`` on ``prompts`` (token ids; at least :attr:`Plan.prompts_needed`, all distinct).

    Raises :class:`MeasurementError` when the server without speculation fails requests.
    """
    counts = {
        arm.name: EqualityCount(evidence_records.Arm.CANDIDATE, plan.near_tie) for arm in plan.arms if arm.server != OFF
    }
    samples, said = list[Sample](), dict[int, Answer]()
    for number in range(plan.rounds):
        done = list[tuple[Batch[Arm], BatchResult]]()
        for turn in plan.turns(number):
            timings = await bench.ready(turn.arm, turn.concurrency)
            result = await bench.run(turn.arm, [prompts[i] for i in turn.prompts], turn.concurrency)
            if turn.arm.server == OFF:
                if result.failures:
                    raise MeasurementError(f"{result.failures} requests failed without speculation")
                said |= {i: a for i, a in zip(turn.prompts, result.answers, strict=True) if a is not None}
            samples.append(_sample(number, turn, result, timings))
            done.append((turn, result))
        for turn, result in done:
            if turn.arm.name in counts:
                await _compare(bench, counts[turn.arm.name], turn, result, prompts, said)
        print(f"round {number + 1} of {plan.rounds}: {_speeds(samples, number)}", flush=True)
    texts = [decode(answer.tokens) for answer in said.values()]
    shares = [share for share in map(distinct_share, texts) if share is not None]
    return Measured(
        samples=tuple(samples),
        equality={name: count.record() for name, count in counts.items()},
        distinct_4grams=statistics.fmean(shares) if shares else None,
        distinct_answers=len(set(texts)) / len(texts),
    )


def _sample(number: int, turn: Batch[Arm], result: BatchResult, timings: Sequence[Timing]) -> Sample:
    return Sample(
        arm=turn.arm.name,
        concurrency=turn.concurrency,
        round=number,
        requests=len(turn.prompts),
        tokens=result.tokens,
        seconds=result.seconds,
        verify_rounds=result.verify_rounds,
        failures=result.failures,
        round_ms=tuple(timing.milliseconds_per_step for timing in timings),
    )


async def _compare(
    bench: Bench,
    count: EqualityCount,
    turn: Batch[Arm],
    result: BatchResult,
    prompts: Sequence[Sequence[int]],
    said: Mapping[int, Answer],
) -> None:
    for index, answer in zip(turn.prompts, result.answers, strict=True):
        if answer is not None:
            await count.compare(index, prompts[index], said[index].tokens, answer.tokens, bench.margin)


def _speeds(samples: Sequence[Sample], number: int) -> str:
    mine = [s for s in samples if s.round == number]
    return ", ".join(f"{s.arm} at {s.concurrency} {s.tokens / s.seconds:.1f}" for s in mine) + " tok/s"
