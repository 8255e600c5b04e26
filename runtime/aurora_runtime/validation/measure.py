"""Interleaved rounds until the verdict is settled, the rounds are used up or the time is.

Where the engines stand side by side, off (and NGRAM) are measured in the same rounds. Where there is one engine, or a
cached baseline, they are measured apart: :func:`measure_apart` takes their rounds, and the rounds of the drafts follow.

Invariants: a sample is a whole batch, taken after the arm was made ready and warmed up outside the clock; a round that
could not be finished in time leaves no samples, so that no arm is measured more often than another; active and
candidate are always measured in the same rounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aurora_protocol.evidence_records import AnswerEquality, Arm, BaselineSamples, Sample, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy, judge
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.answer_equality import NEAR_TIE, EqualityCount
from aurora_runtime.validation.held_out_prompts import Prompt
from aurora_runtime.validation.load_client import Answer, BatchResult
from aurora_runtime.validation.round_schedule import Batch, batches, settled

log = logging.getLogger(__name__)

FINAL = (VerdictKind.PASS, VerdictKind.REJECT)
DRAFTS = (Arm.ACTIVE, Arm.CANDIDATE)
Answers = dict[tuple[int, int], Answer]
"""(concurrency, prompt) -> the greedy answer that others are compared with."""


class Bench(Protocol):
    """The engines under measurement."""

    async def ready(self, arm: Arm) -> None:
        """Bring ``arm``'s draft in place, warm it up and empty its prefix cache."""

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` with ``arm``."""

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap of two next tokens' log-probabilities by the target."""


@dataclass(frozen=True)
class MeasurePlan:
    """How to measure: the gate's policy, and the bounds of the measurement."""

    policy: GatePolicy
    arms: tuple[Arm, ...]
    max_rounds: int
    prompts_per_worker: int
    near_tie: float = NEAR_TIE
    """Largest gap of two logits at which greedy answers may part."""

    @property
    def apart(self) -> tuple[Arm, ...]:
        """The arms without a draft of ours."""
        return tuple(arm for arm in self.arms if arm not in DRAFTS)

    @property
    def prompts_needed(self) -> int:
        """Distinct prompts without which a batch would ask the same twice."""
        return self.prompts_per_worker * max(self.policy.concurrencies)

    @property
    def prompts_wanted(self) -> int:
        """Distinct prompts with which no two rounds would share one."""
        return self.prompts_per_worker * sum(self.policy.concurrencies) * self.max_rounds


@dataclass
class Measurement:
    """What was measured. ``acceptance_length`` is answer tokens per verify round over all samples."""

    arms: tuple[Arm, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    equality: dict[Arm, EqualityCount] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def equalities(self) -> tuple[AnswerEquality, ...]:
        return tuple(count.record() for count in self.equality.values())

    def acceptance_length(self) -> dict[Arm, float]:
        lengths = {}
        for arm in self.arms:
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


async def measure_apart(
    bench: Bench,
    prompts: Sequence[Prompt],
    plan: MeasurePlan,
    *,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Sample], Answers]:
    """The rounds that a verdict needs of each arm without a draft of ours, one arm after the other, and off's answers.

    The active draft comes first, as a control: measured again beside the candidate, it tells how much the machine's
    speed changed in between.

    Raises :class:`MeasurementError` when they do not fit, or as :func:`measure` does.
    """
    taken: list[Sample] = []
    known: Answers = {}
    for arm in (Arm.ACTIVE, *plan.apart):
        for number in range(plan.policy.min_rounds):
            found = await _round(bench, prompts, plan, (arm,), number, deadline, clock)
            if found is None:
                raise MeasurementError(
                    f"the rounds of {arm} did not fit into the time: raise validation.timeoutSeconds"
                )
            samples, answers = found
            taken += samples
            known |= _answers_of(Arm.OFF, answers)
    return taken, known


async def measure(
    bench: Bench,
    prompts: Sequence[Prompt],
    plan: MeasurePlan,
    *,
    deadline: float,
    clock: Callable[[], float] = time.monotonic,
    baseline: BaselineSamples | None = None,
    known: Answers | None = None,
) -> Measurement:
    """Measure round by round. ``deadline`` is on ``clock``, in seconds.

    Args:
        baseline: off, and peers, measured apart; only the drafts are measured then.
        known: off's answers, where it was measured apart and just now. With a baseline and without them the candidate
            is compared with the active draft, which the caller knows to answer as off does.

    Raises :class:`MeasurementError` when not even one round fits, or when the engine without speculation fails
    requests: then nothing can be said about the candidate.
    """
    reference = Arm.ACTIVE if baseline is not None and known is None else Arm.OFF
    arms = plan.arms if baseline is None else DRAFTS
    counts = {arm: EqualityCount(arm, plan.near_tie, reference) for arm in arms if arm is not reference}
    result = Measurement(equality=counts, arms=arms)
    longest = 0.0
    for number in range(plan.max_rounds):
        began = clock()
        if number and began + longest > deadline:
            log.info("measure: no time for another round")
            break
        found = await _round(bench, prompts, plan, arms, number, deadline, clock)
        if found is None:
            break
        samples, answers = found
        result.samples += samples
        await _compare(bench, prompts, answers, {**(known or {}), **_answers_of(reference, answers)}, result)
        longest = max(longest, clock() - began)
        result.verdicts.append(judge(result.samples, result.equalities(), plan.policy, baseline))
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
    arms: Sequence[Arm],
    number: int,
    deadline: float,
    clock: Callable[[], float],
) -> tuple[list[Sample], dict[Batch[Arm], BatchResult]] | None:
    """One round of ``arms``: its samples and answers; None when time ran out."""
    concurrencies = plan.policy.concurrencies
    turns = batches(number, arms, concurrencies, prompts_per_worker=plan.prompts_per_worker, available=len(prompts))
    samples: list[Sample] = []
    answers: dict[Batch[Arm], BatchResult] = {}
    for turn in turns:
        if clock() > deadline:
            log.info("measure: out of time within round %d, which is left out", number)
            return None
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
    return samples, answers


def _answers_of(arm: Arm, answers: dict[Batch[Arm], BatchResult]) -> Answers:
    return {
        (turn.concurrency, index): answer
        for turn, batch in answers.items()
        if turn.arm is arm
        for index, answer in zip(turn.prompts, batch.answers, strict=True)
        if answer is not None
    }


async def _compare(
    bench: Bench,
    prompts: Sequence[Prompt],
    answers: dict[Batch[Arm], BatchResult],
    reference: Answers,
    result: Measurement,
) -> None:
    """Compare every answer for which there is one to compare with."""
    for turn, batch in answers.items():
        count = result.equality.get(turn.arm)
        for index, answer in zip(turn.prompts, batch.answers, strict=True):
            base = reference.get((turn.concurrency, index))
            if count is not None and answer is not None and base is not None:
                prompt = prompts[index]
                await count.compare(prompt.request, prompt.tokens, base.tokens, answer.tokens, bench.margin)


def _say(number: int, plan: MeasurePlan, result: Measurement, seconds: float) -> None:
    verdict = result.verdicts[-1]
    ratios = "; ".join(
        f"{r.numerator}/{r.denominator}@{r.concurrency} {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}]"
        for r in verdict.ratios
        if r.numerator is Arm.CANDIDATE
    )
    log.info("measure: round %d of %d in %.0f s: %s: %s", number + 1, plan.max_rounds, seconds, verdict.kind, ratios)
