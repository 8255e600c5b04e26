"""Measures a candidate in rounds: every arm answers the same prompts at every concurrency.

After each look :mod:`~aurora_runtime.validation.budget` says whether further rounds follow, and with which arms at
which concurrencies. They leave out what is decided, so that the rest is decided sooner.

Invariants: all arms are measured in the same rounds. Within a round and a concurrency every arm answers the same
prompts, one arm right after the other. The two drafts change their order from turn to turn, so that neither is always
first, and the draft that ends a turn begins the next one: no swap lies between them. The other arms need no swap and
wander through the turn. A sample is a whole batch, taken after the engine was prepared outside the clock. A round that
did not finish in time leaves no samples, so that no arm is measured more often than another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from aurora_api.v1alpha1.validation import PROMPTS_NEEDED, Baseline
from aurora_protocol.evidence_records import AnswerEquality, Arm, MeasurementEnd, Sample, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy, judge
from aurora_protocol.gate.throughput_ratios import Confidence
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.errors import MeasurementError, OutOfTime
from aurora_runtime.validation.answer_equality import NEAR_TIE_LOGIT_GAP, EqualityCounter, near_tie_bound
from aurora_runtime.validation.budget import (
    SHARE,
    Ending,
    Progress,
    ending,
    ending_of_last_round,
    is_look,
    open_arms,
)
from aurora_runtime.validation.measured_engine import DRAFT_ARMS, Answer, BatchResult, MeasuredEngine
from aurora_runtime.validation.store_reads import Prompt

log = logging.getLogger(__name__)

T = TypeVar("T")
Answers = dict[tuple[int, int], Answer]
"""Greedy answers by concurrency and index of the prompt."""
NewerVersion = Callable[[], Awaitable[int | None]]
"""Asks the store for a newer version that waits to be measured."""


@dataclass(frozen=True)
class MeasurementPlan:
    """The gate's policy, and the arms and sizes of a measurement."""

    policy: GatePolicy
    arms: tuple[Arm, ...]
    max_rounds: int
    prompts_per_worker: int
    """Prompts per round for each concurrent worker."""
    distinct_per_worker: int = PROMPTS_NEEDED
    """Distinct prompts that the measurement needs, for each concurrent worker."""
    near_tie_bound: float = NEAR_TIE_LOGIT_GAP
    """Largest gap of two logits at which greedy answers may differ."""

    @classmethod
    def of(cls, settings: ValidationSettings) -> MeasurementPlan:
        """The measurement that the resource asks for."""
        spec, rounds = settings.validation, settings.rounds
        arms = [Arm.OFF, *DRAFT_ARMS, *([Arm.NGRAM] if Baseline.NGRAM in spec.baselines else [])]
        policy = replace(GatePolicy.of(spec), min_rounds=rounds.fewest)
        bound = near_tie_bound(settings.target.dtype)
        return cls(policy, tuple(arms), rounds.most, rounds.prompts, rounds.distinct, bound)

    @property
    def prompts_needed(self) -> int:
        """Number of distinct prompts below which nothing is measured."""
        return max(self.prompts_per_worker, self.distinct_per_worker) * max(self.policy.concurrencies)

    @property
    def prompts_wanted(self) -> int:
        """Number of distinct prompts with which the first rounds, those of its share, have no prompt in common.

        More would be of older traffic, which the candidate will not serve.
        """
        rounds = min(self.max_rounds, SHARE * self.policy.min_rounds)
        return max(self.prompts_needed, self.prompts_per_worker * sum(self.policy.concurrencies) * rounds)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """The prompts, by their indices, that one arm answers at one concurrency."""

    arm: T
    concurrency: int
    prompts: tuple[int, ...]


def batches(
    number: int,
    drafts: Sequence[T],
    others: Sequence[T],
    concurrencies: Sequence[int],
    *,
    prompts_per_worker: int,
    available: int,
) -> list[Batch[T]]:
    """The batches of round ``number``, in order. Pure, so that their fairness can be tested.

    Args:
        drafts: the arms between which the engine swaps. Their order rotates.
        others: the other arms.
        prompts_per_worker: prompts for each concurrent worker.
        available: number of distinct prompts, at least ``prompts_per_worker`` times the highest concurrency. Successive
            batches walk through the prompts in a circle, so that rounds share as few prompts as possible.
    """
    turns: list[list[Batch[T]]] = []
    first = number * prompts_per_worker * sum(concurrencies)
    for position, concurrency in enumerate(concurrencies):
        count = prompts_per_worker * concurrency
        prompts = tuple((first + i) % available for i in range(count))
        first += count
        order = _rotated(drafts, number + position)
        for place, arm in enumerate(others):
            order.insert((number + position + place) % (len(order) + 1), arm)
        turns.append([Batch(arm, concurrency, prompts) for arm in order])
    return [batch for turn in _rotated(turns, number) for batch in turn]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """``items`` rotated to the left."""
    by %= len(items)
    return [*items[by:], *items[:by]]


@dataclass(frozen=True)
class RoundResult:
    """The batches of one round with their results, and the samples made from them."""

    batches: dict[Batch[Arm], BatchResult]
    samples: tuple[Sample, ...]

    def answers_of(self, arm: Arm) -> Answers:
        """The answers of ``arm``, without failed requests."""
        return {
            (batch.concurrency, index): answer
            for batch, result in self.batches.items()
            if batch.arm is arm
            for index, answer in zip(batch.prompts, result.answers, strict=True)
            if answer is not None
        }


@dataclass(frozen=True)
class RoundRunner:
    """Runs rounds until ``deadline``, which is on ``clock``, in seconds."""

    engine: MeasuredEngine
    prompts: Sequence[Prompt]
    plan: MeasurementPlan
    deadline: float
    clock: Callable[[], float] = time.monotonic

    @property
    def others(self) -> tuple[Arm, ...]:
        """The arms that need no swap."""
        return tuple(arm for arm in self.plan.arms if arm not in DRAFT_ARMS)

    async def prepare(self) -> None:
        """Warm all arms up, so that the first round takes as long as the others. Stops when time is over.

        Of the drafts, the one that is first in the first round is prepared last, which saves a swap. Raises
        :class:`OutOfTime` when the time ends while one arm is prepared.
        """
        for arm in (*reversed(DRAFT_ARMS), *self.others):
            if self.clock() <= self.deadline:
                await self.engine.prepare(arm)

    async def run(self, number: int, arms: Mapping[int, Sequence[Arm]]) -> RoundResult | None:
        """Run round ``number``. None when time ran out before the round's end.

        Args:
            arms: the arms to measure at each concurrency. A concurrency without arms is left out.

        Raises :class:`MeasurementError` when requests fail on an arm that the candidate is compared with, or when the
        time ends while the candidate is loaded or answers. It may hang, and must not pass by the rounds before.
        """
        results: dict[Batch[Arm], BatchResult] = {}
        schedule = batches(
            number,
            DRAFT_ARMS,
            self.others,
            self.plan.policy.concurrencies,
            prompts_per_worker=self.plan.prompts_per_worker,
            available=len(self.prompts),
        )
        for batch in (b for b in schedule if b.arm in arms.get(b.concurrency, ())):
            if self.clock() > self.deadline:
                log.info("measure: time ran out during round %d, which is left out", number)
                return None
            prompts = [self.prompts[index].tokens for index in batch.prompts]
            try:
                await self.engine.prepare(batch.arm)
                results[batch] = await self.engine.run(batch.arm, prompts, batch.concurrency)
            except OutOfTime as error:
                if batch.arm is Arm.CANDIDATE:
                    raise MeasurementError(f"the candidate did not answer in time: {error}") from error
                log.info("measure: time ran out during round %d, which is left out: %s", number, error)
                return None
            if batch.arm in (Arm.OFF, Arm.ACTIVE) and (failures := results[batch].failures):
                raise MeasurementError(f"{failures} requests failed on {batch.arm}: see the engine's log")
        return RoundResult(results, tuple(_sample(number, batch, result) for batch, result in results.items()))


def _sample(number: int, batch: Batch[Arm], result: BatchResult) -> Sample:
    return Sample(
        arm=batch.arm,
        concurrency=batch.concurrency,
        round=number,
        requests=len(batch.prompts),
        tokens=result.tokens,
        seconds=result.seconds,
        verify_rounds=result.verify_rounds,
        failures=result.failures,
    )


@dataclass
class Measurement:
    """The samples of a measurement, and the verdict after each round."""

    samples: list[Sample] = field(default_factory=list)
    equality: dict[Arm, EqualityCounter] = field(default_factory=dict)
    """By arm, for all arms but off."""
    verdicts: list[Verdict] = field(default_factory=list)
    end: Ending = field(default_factory=lambda: Ending(MeasurementEnd.BUDGET_USED))
    """Counts once the measurement has ended."""

    @classmethod
    def rejected_unmeasured(cls, reason: str) -> Measurement:
        """The result for a candidate that no pod would load: a rejection without samples."""
        verdict = Verdict(kind=VerdictKind.REJECT, reasons=(f"no pod would load the draft: {reason}",), ratios=())
        return cls(verdicts=[verdict], end=Ending(MeasurementEnd.DECIDED))

    def judge(self, policy: GatePolicy, confidence: Confidence = Confidence.FINAL) -> Verdict:
        """The verdict of the samples so far."""
        return judge(self.samples, self.equalities(), policy, confidence=confidence)

    def equalities(self) -> tuple[AnswerEquality, ...]:
        """The comparison of greedy answers for each compared arm."""
        return tuple(counter.record() for counter in self.equality.values())

    def acceptance_length(self) -> dict[Arm, float]:
        """Answer tokens per verify round over all samples, for each arm that speculates."""
        lengths = {}
        for arm in self.equality:
            samples = [sample for sample in self.samples if sample.arm is arm and sample.verify_rounds]
            if rounds := sum(sample.verify_rounds or 0 for sample in samples):
                lengths[arm] = sum(sample.tokens for sample in samples) / rounds
        return lengths


async def measure(runner: RoundRunner, *, newer_version: NewerVersion | None = None) -> Measurement:
    """Warm all arms up, so that no round has to, and measure round by round.

    ``newer_version`` is asked after each undecided look, where a measurement may give way.

    Raises :class:`MeasurementError` when not even one round fits into the time, or as :meth:`RoundRunner.run` does.
    """
    plan, policy = runner.plan, runner.plan.policy
    measurement = Measurement()
    measurement.equality = {arm: EqualityCounter(arm, plan.near_tie_bound) for arm in plan.arms if arm is not Arm.OFF}
    await runner.prepare()
    longest_round_seconds, end = 0.0, None
    open_now = dict.fromkeys(policy.concurrencies, plan.arms)
    for number in range(plan.max_rounds):
        started = runner.clock()
        if number and started + longest_round_seconds > runner.deadline:
            log.info("measure: no time for another round")
            break
        result = await runner.run(number, open_now)
        if result is None:
            break
        measurement.samples += result.samples
        await _compare_answers(runner, result, measurement)
        round_seconds = runner.clock() - started
        longest_round_seconds = max(longest_round_seconds, round_seconds)
        rounds_left = int(min(plan.max_rounds - number - 1, (runner.deadline - runner.clock()) / longest_round_seconds))
        rounds_allowed = number + 1 + max(0, rounds_left)
        if number + 1 < rounds_allowed and not is_look(policy, number + 1):
            continue
        verdict, early = measurement.judge(policy), measurement.judge(policy, Confidence.EARLY)
        measurement.verdicts.append(verdict)
        _log_round(number, plan.max_rounds, verdict, round_seconds)
        newer = await newer_version() if newer_version and number + 1 >= policy.min_rounds else None
        end = ending(Progress(policy, verdict, early, number + 1, rounds_allowed, newer))
        if end is not None:
            break
        open_now = {c: tuple(arm for arm in plan.arms if arm in open_) for c, open_ in open_arms(policy, early).items()}
    if not measurement.samples:
        raise MeasurementError("not one round could be finished in time: raise validation.timeoutSeconds")
    if end is None:  # the time ended, perhaps some rounds after the last look
        last = measurement.judge(policy)
        measurement.verdicts.append(last)
        end = ending_of_last_round(last)
    measurement.end = end
    return measurement


async def _compare_answers(runner: RoundRunner, result: RoundResult, into: Measurement) -> None:
    """Compare the answers of the round with off's, and in a round without off the candidate's with the active draft's.

    Greedy answers do not depend on the draft.
    """
    off_answers = result.answers_of(Arm.OFF)
    references = {Arm.CANDIDATE: result.answers_of(Arm.ACTIVE) | off_answers}
    for batch, batch_result in result.batches.items():
        counter = into.equality.get(batch.arm)
        for index, answer in zip(batch.prompts, batch_result.answers, strict=True):
            expected = references.get(batch.arm, off_answers).get((batch.concurrency, index))
            if counter is not None and answer is not None and expected is not None:
                prompt = runner.prompts[index]
                await counter.compare(
                    prompt.request, prompt.tokens, expected.tokens, answer.tokens, runner.engine.margin
                )


def _log_round(number: int, max_rounds: int, verdict: Verdict, seconds: float) -> None:
    ratios = "; ".join(
        f"{ratio.numerator}/{ratio.denominator}@{ratio.concurrency} {ratio.estimate:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        for ratio in verdict.ratios
        if ratio.numerator is Arm.CANDIDATE
    )
    log.info("measure: round %d of at most %d in %.0f s: %s: %s", number + 1, max_rounds, seconds, verdict.kind, ratios)
