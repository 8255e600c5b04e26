"""Interleaved rounds until the verdict is settled, the rounds are used up or the time is.

Invariants: a sample is a whole batch, taken after the arm was made ready and warmed up outside the clock; a round that
could not be finished in time leaves no samples, so that no arm is measured more often than another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aurora_api.gate import GatePolicy, judge
from aurora_api.records import Arm, Equality, Sample, Verdict, VerdictKind
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.equality import NEAR_TIE, EqualityCount
from aurora_runtime.validation.load import Answer, BatchResult
from aurora_runtime.validation.prompts import Prompt
from aurora_runtime.validation.schedule import Batch, batches, settled

log = logging.getLogger(__name__)

FINAL = (VerdictKind.PASS, VerdictKind.REJECT)


class Bench(Protocol):
    """The engines under measurement."""

    async def ready(self, arm: Arm) -> None:
        """Bring ``arm``'s draft in place, warm it up and empty its prefix cache."""

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` with ``arm``."""

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap of two next tokens' log-probabilities on the engine without speculation."""


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure: the gate's policy, and the bounds of the measurement."""

    policy: GatePolicy
    arms: tuple[Arm, ...]
    max_rounds: int
    per_worker: int
    near_tie: float = NEAR_TIE
    """Largest gap of two logits at which greedy answers may part."""

    @property
    def prompts_needed(self) -> int:
        """Distinct prompts without which a batch would ask the same twice."""
        return self.per_worker * max(self.policy.concurrencies)

    @property
    def prompts_wanted(self) -> int:
        """Distinct prompts with which no two rounds would share one."""
        return self.per_worker * sum(self.policy.concurrencies) * self.max_rounds


@dataclass
class Measurement:
    """What was measured. ``accept_length`` is answer tokens per verify round over all samples."""

    samples: list[Sample] = field(default_factory=list)
    equality: dict[Arm, EqualityCount] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def equalities(self) -> tuple[Equality, ...]:
        return tuple(count.record() for count in self.equality.values())

    def accept_length(self) -> dict[Arm, float]:
        lengths = {}
        for arm in self.equality:
            taken = [s for s in self.samples if s.arm is arm and s.verify_rounds]
            rounds = sum(s.verify_rounds or 0 for s in taken)
            if rounds:
                lengths[arm] = sum(s.tokens for s in taken) / rounds
        return lengths


def refused(why: str) -> Measurement:
    """What is known of a candidate that cannot be loaded: a verdict without samples."""
    return Measurement(
        verdicts=[Verdict(kind=VerdictKind.REJECT, reasons=(f"no pod would load it: {why}",), ratios=())]
    )


async def measure(
    bench: Bench,
    prompts: Sequence[Prompt],
    plan: MeasurePlan,
    *,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> Measurement:
    """Measure round by round. ``deadline`` is on ``clock``, in seconds.

    Raises :class:`MeasurementError` when not even one round fits, or when the engine without speculation fails
    requests: then nothing can be said about the candidate.
    """
    result = Measurement(equality={arm: EqualityCount(arm, plan.near_tie) for arm in plan.arms if arm is not Arm.OFF})
    longest = 0.0
    for number in range(plan.max_rounds):
        began = clock()
        if number and began + longest > deadline:
            log.info("measure: no time for another round")
            break
        if not await _round(bench, prompts, plan, number, result, deadline, clock):
            break
        longest = max(longest, clock() - began)
        result.verdicts.append(judge(result.samples, result.equalities(), plan.policy))
        _say(number, plan, result, clock() - began)
        # Before min_rounds speed decides nothing: only failed or different answers settle a verdict, and they stay.
        if settled([v.kind for v in result.verdicts], final=FINAL):
            break
    if not result.verdicts:
        raise MeasurementError("not one round could be finished in time: raise validation.timeoutSeconds")
    return result


async def _round(
    bench: Bench,
    prompts: Sequence[Prompt],
    plan: MeasurePlan,
    number: int,
    result: Measurement,
    deadline: float,
    clock: Callable[[], float],
) -> bool:
    """Measure one round and add its samples; False, and no samples, when time ran out."""
    concurrencies = plan.policy.concurrencies
    turns = batches(number, plan.arms, concurrencies, per_worker=plan.per_worker, available=len(prompts))
    samples: list[Sample] = []
    answers: dict[Batch, BatchResult] = {}
    for turn in turns:
        if clock() > deadline:
            log.info("measure: out of time within round %d, which is left out", number)
            return False
        await bench.ready(turn.arm)
        batch = await bench.run(turn.arm, [prompts[i].tokens for i in turn.prompts], turn.concurrency)
        if turn.arm is Arm.OFF and batch.failures:
            raise MeasurementError(f"{batch.failures} requests failed on the engine without speculation")
        answers[turn] = batch
        samples.append(
            Sample(
                arm=turn.arm,
                concurrency=turn.concurrency,
                round=number,
                requests=len(turn.prompts),
                tokens=batch.tokens,
                seconds=batch.seconds,
                verify_rounds=batch.verify_rounds,
                failures=batch.failures,
            )
        )
    result.samples += samples
    await _compare(bench, prompts, answers, result)
    return True


async def _compare(
    bench: Bench, prompts: Sequence[Prompt], answers: dict[Batch, BatchResult], result: Measurement
) -> None:
    off: dict[tuple[int, int], Answer] = {}
    for turn, batch in answers.items():
        if turn.arm is Arm.OFF:
            off |= {(turn.concurrency, i): a for i, a in zip(turn.prompts, batch.answers, strict=True) if a is not None}
    for turn, batch in answers.items():
        if turn.arm is Arm.OFF:
            continue
        for index, answer in zip(turn.prompts, batch.answers, strict=True):
            if answer is not None:
                prompt, base = prompts[index], off[turn.concurrency, index]
                count = result.equality[turn.arm]
                await count.compare(prompt.request, prompt.tokens, base.tokens, answer.tokens, bench.margin)


def _say(number: int, plan: MeasurePlan, result: Measurement, seconds: float) -> None:
    verdict = result.verdicts[-1]
    ratios = "; ".join(
        f"{r.numerator}/{r.denominator}@{r.concurrency} {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}]"
        for r in verdict.ratios
        if r.numerator is Arm.CANDIDATE
    )
    log.info("measure: round %d of %d in %.0f s: %s: %s", number + 1, plan.max_rounds, seconds, verdict.kind, ratios)
