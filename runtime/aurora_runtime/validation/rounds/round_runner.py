"""Runs one round of a measurement: every arm answers the same prompts at every concurrency.

Invariants: a sample is a whole batch, taken after the engine was prepared and warmed up outside the clock. A round
that did not finish in time leaves no samples, so that no arm is measured more often than another.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aurora_protocol.evidence_records import Arm, Sample
from aurora_runtime.errors import AnswersOverdue, MeasurementError, OutOfTime
from aurora_runtime.validation.engines.engines_under_test import EnginesUnderTest
from aurora_runtime.validation.engines.load_client import Answer, BatchResult
from aurora_runtime.validation.held_out_prompts import Prompt
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS, MeasurementPlan
from aurora_runtime.validation.rounds.round_schedule import Batch, batches

log = logging.getLogger(__name__)

Answers = dict[tuple[int, int], Answer]
"""Greedy answers by concurrency and index of the prompt."""


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

    engines: EnginesUnderTest
    prompts: Sequence[Prompt]
    plan: MeasurementPlan
    deadline: float
    clock: Callable[[], float] = time.monotonic

    async def prepare(self, arms: Sequence[Arm]) -> None:
        """Warm all arms up, so that the first round takes as long as the others. Stops when time is over.

        Of the drafts, the one that is first in the first round is prepared last, which saves a swap. Raises
        :class:`OutOfTime` when the time ends while one arm is prepared.
        """
        for arm in (*reversed(DRAFT_ARMS), *(arm for arm in arms if arm not in DRAFT_ARMS)):
            if self.clock() <= self.deadline:
                await self.engines.prepare(arm)

    async def run(self, number: int, arms: Mapping[int, Sequence[Arm]]) -> RoundResult | None:
        """Run round ``number``. None when time ran out before the round's end.

        Args:
            arms: the arms to measure at each concurrency. A concurrency without arms is left out.

        Raises :class:`MeasurementError` when requests fail without speculation, or when the time ends while the
        candidate warms up or answers. Then nothing can be said about a draft.
        """
        results: dict[Batch[Arm], BatchResult] = {}
        schedule = batches(
            number,
            DRAFT_ARMS,
            self.plan.baseline_arms,
            self.plan.policy.concurrencies,
            prompts_per_worker=self.plan.prompts_per_worker,
            available=len(self.prompts),
        )
        for batch in (b for b in schedule if b.arm in arms.get(b.concurrency, ())):
            try:
                result = await self._result_of(batch)
            except OutOfTime as error:
                log.info("measure: time ran out during round %d, which is left out: %s", number, error)
                return None
            if batch.arm is Arm.OFF and result.failures:
                raise MeasurementError(
                    f"{result.failures} requests failed on the engine without speculation: see that engine's log"
                )
            results[batch] = result
        return RoundResult(results, tuple(_sample(number, batch, result) for batch, result in results.items()))

    async def _result_of(self, batch: Batch[Arm]) -> BatchResult:
        """Prepare the engine and run ``batch``. Raises :class:`OutOfTime` when the time is over before its end.

        Raises :class:`MeasurementError` when the time ends while the candidate warms up or answers. The candidate may
        hang, and must not pass by the rounds before.
        """
        if self.clock() > self.deadline:
            raise OutOfTime("the time is over between two batches")
        prompts, is_prepared = [self.prompts[index].tokens for index in batch.prompts], False
        try:
            await self.engines.prepare(batch.arm)
            is_prepared = True
            return await self.engines.run(batch.arm, prompts, batch.concurrency)
        except OutOfTime as error:
            answered_late = is_prepared or isinstance(error, AnswersOverdue)  # a swap that is late is not the draft's
            if batch.arm is Arm.CANDIDATE and answered_late:
                raise MeasurementError(f"the candidate did not answer in time: {error}") from error
            raise


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
