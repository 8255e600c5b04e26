"""Measures all arms in paired rounds on the same fresh conversations, and compares their answers.

Invariants:

- No arm is asked a request twice, so no arm has seen an answer before.
- Within a round and a concurrency, the arms answer the same conversations right after each other. Their order rotates,
  by the validator's own schedule.
- Before a batch each arm answers warm-up requests that it never saw, and that no batch has. A warm-up of known
  requests would teach the controller, and NGRAM's index, that lookup guesses everything.
- Greedy answers to first turns are compared between rounds, not while a batch runs. Later turns follow an arm's own
  answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.served.arms import Arm, Servers
from tests.traffic.driver import Conversation

from aurora_protocol import evidence_records
from aurora_protocol.evidence_records import AnswerEquality, RatioEstimate
from aurora_protocol.gate import paired_ratio
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.measured_engine import Answer, BatchResult
from aurora_runtime.validation.rounds import Batch, EqualityCounter, batches


@dataclass(frozen=True)
class MeasurementPlan:
    """The arms to measure, and how often to measure them.

    Attributes:
        per_worker: conversations per batch and unit of concurrency.
        near_tie_gap: largest gap of two logits at which greedy answers may diverge.
    """

    arms: tuple[Arm, ...]
    concurrencies: tuple[int, ...]
    rounds: int
    per_worker: int
    near_tie_gap: float

    @property
    def off(self) -> Arm:
        """The arm without speculation."""
        return self.arms[0]

    @property
    def needed(self) -> int:
        """The number of distinct conversations. With fewer, one would be asked twice."""
        return self.rounds * self.per_worker * sum(self.concurrencies)

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
            prompts_per_worker=self.per_worker,
            available=self.needed,
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
    """All samples, and per arm with speculation the comparison of its answers with those without speculation."""

    samples: tuple[Sample, ...]
    equality: Mapping[str, AnswerEquality]

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


async def measure(servers: Servers, plan: MeasurementPlan, conversations: Sequence[Conversation]) -> Measured:
    """Measure ``plan`` on at least :attr:`MeasurementPlan.needed` distinct conversations.

    Raises :class:`MeasurementError` when a request without speculation failed.
    """
    equality = {arm.name: EqualityCounter(plan.near_tie_gap) for arm in plan.arms if arm != plan.off}
    first_turns = [servers.tokens([*one.opening(), {"role": "user", "content": one.turns[0]}]) for one in conversations]
    samples, off_answers = list[Sample](), dict[int, Answer]()
    for number in range(plan.rounds):
        results = list[tuple[Batch[Arm], list[BatchResult]]]()
        for batch in plan.batches_of(number):
            timings = await servers.prepare(batch.arm, batch.concurrency, plan.first_warmup(number, batch.concurrency))
            turns = await servers.run(batch.arm, [conversations[i] for i in batch.prompts], batch.concurrency)
            samples.append(_sample(number, batch, turns, timings))
            if batch.arm == plan.off:
                if failures := samples[-1].counts.failures:
                    raise MeasurementError(f"{failures} requests failed without speculation")
                off_answers |= {i: a for i, a in zip(batch.prompts, turns[0].answers, strict=True) if a is not None}
            results.append((batch, turns))
        for batch, turns in results:
            for index, answer in zip(batch.prompts, turns[0].answers, strict=True):
                if answer is not None and batch.arm.name in equality:
                    pair = off_answers[index].tokens, answer.tokens
                    await equality[batch.arm.name].compare(index, first_turns[index], *pair, servers.margin)
        print(f"round {number + 1} of {plan.rounds}: {_describe_speeds(samples, number)}", flush=True)
    return Measured(tuple(samples), {name: count.record() for name, count in equality.items()})


def _sample(number: int, batch: Batch[Arm], turns: Sequence[BatchResult], milliseconds: Sequence[float]) -> Sample:
    rounds = [turn.verify_rounds for turn in turns if turn.verify_rounds is not None]
    counts = BatchCounts(
        requests=len(batch.prompts) * len(turns),
        tokens=sum(turn.tokens for turn in turns),
        seconds=sum(turn.seconds for turn in turns),
        verify_rounds=sum(rounds) if rounds else None,
        failures=sum(turn.failures for turn in turns),
    )
    return Sample(batch.arm.name, batch.concurrency, number, counts, tuple(milliseconds))


def _describe_speeds(samples: Sequence[Sample], number: int) -> str:
    speeds = [
        f"{s.arm} at {s.concurrency} {s.counts.tokens / s.counts.seconds:.1f}" for s in samples if s.round == number
    ]
    return ", ".join(speeds) + " tok/s"
