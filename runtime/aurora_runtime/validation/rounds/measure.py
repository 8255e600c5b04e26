"""Measures a candidate: interleaved rounds until the gate's budget ends the measurement.

After each look :mod:`~aurora_runtime.validation.rounds.budget` says whether further rounds follow, and with which arms
at which concurrencies. They leave out what is decided, so that the rest is decided sooner.

Where several engines run side by side, off (and NGRAM) are measured in the same rounds as the drafts. With a single
engine, :func:`measure_baseline` measures them first.

Invariant: active and candidate are always measured in the same rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aurora_protocol.evidence_records import AnswerEquality, Arm, MeasurementEnd, Sample, Verdict, VerdictKind
from aurora_protocol.gate import judge
from aurora_protocol.gate.throughput_ratios import Confidence
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.rounds.answer_equality import EqualityCounter
from aurora_runtime.validation.rounds.budget import Ending, Progress, ending, ending_of_last_round, is_look, open_arms
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS
from aurora_runtime.validation.rounds.round_runner import Answers, RoundResult, RoundRunner

log = logging.getLogger(__name__)

BASELINE: Final = 4
"""Rounds of an arm that is measured before the candidate, in multiples of the policy's fewest rounds. Nothing cancels
in the ratio to it, so the spread of its prompts counts."""
NewerVersion = Callable[[], Awaitable[int | None]]
"""Asks the store for a newer version that waits to be measured."""


async def no_newer_version() -> int | None:
    """For a measurement that gives way to no version."""
    return None


@dataclass(frozen=True)
class MeasuredBefore:
    """The samples from before the candidate, on an engine that runs one arm at a time."""

    samples: tuple[Sample, ...] = ()
    """Batches of off, of NGRAM where the spec asks for it, and of the active draft."""
    off_answers: Answers = field(default_factory=dict)


@dataclass
class Measurement:
    """The samples of a measurement, and the verdict after each round."""

    baseline: MeasuredBefore = field(default_factory=MeasuredBefore)
    arms: tuple[Arm, ...] = ()
    samples: list[Sample] = field(default_factory=list)
    equality: dict[Arm, EqualityCounter] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    end: Ending = field(default_factory=lambda: Ending(MeasurementEnd.BUDGET_USED))
    """Counts once the measurement has ended."""

    def equalities(self) -> tuple[AnswerEquality, ...]:
        """The comparison of greedy answers for each compared arm."""
        return tuple(counter.record() for counter in self.equality.values())

    def acceptance_length(self) -> dict[Arm, float]:
        """Answer tokens per verify round over all samples, for each arm that speculates."""
        lengths = {}
        for arm in self.arms:
            samples = [sample for sample in self.samples if sample.arm is arm and sample.verify_rounds]
            if rounds := sum(sample.verify_rounds or 0 for sample in samples):
                lengths[arm] = sum(sample.tokens for sample in samples) / rounds
        return lengths


def rejected_unmeasured(reason: str) -> Measurement:
    """The result for a candidate that no pod would load: a rejection without samples."""
    return Measurement(
        verdicts=[Verdict(kind=VerdictKind.REJECT, reasons=(f"no pod would load the draft: {reason}",), ratios=())],
        end=Ending(MeasurementEnd.DECIDED),
    )


async def measure_baseline(runner: RoundRunner) -> MeasuredBefore:
    """Measure off and NGRAM, one after the other, for :data:`BASELINE` times as many rounds as a verdict needs.

    The active draft is measured first, as a control. Measured again beside the candidate, the active draft shows how
    much the machine's speed changed in between.

    Raises :class:`MeasurementError` when the rounds do not fit into the time, or as :meth:`RoundRunner.run` does.
    """
    plan = runner.plan
    samples: list[Sample] = []
    off_answers: Answers = {}
    for arm in (Arm.ACTIVE, *plan.baseline_arms):
        for number in range(min(plan.max_rounds, BASELINE * plan.policy.min_rounds)):
            result = await runner.run(number, dict.fromkeys(plan.policy.concurrencies, (arm,)))
            if result is None:
                raise MeasurementError(
                    f"the rounds of {arm} did not fit into the time: raise validation.timeoutSeconds"
                )
            samples += result.samples
            off_answers |= result.answers_of(Arm.OFF)
    return MeasuredBefore(tuple(samples), off_answers)


async def measure(
    runner: RoundRunner, *, baseline: MeasuredBefore | None = None, newer_version: NewerVersion = no_newer_version
) -> Measurement:
    """Warm all arms up, so that no round has to, and measure round by round.

    Args:
        baseline: off, and NGRAM where asked for, if they were measured before. Then only the drafts are measured.
        newer_version: asked after each undecided round.

    Raises :class:`MeasurementError` when not even one round fits into the time, or as :meth:`RoundRunner.run` does.
    """
    plan = runner.plan
    arms, before = (plan.arms, MeasuredBefore()) if baseline is None else (DRAFT_ARMS, baseline)
    measurement = Measurement(baseline=before, arms=arms)
    measurement.equality |= {arm: EqualityCounter(arm, plan.near_tie_bound) for arm in arms if arm is not Arm.OFF}
    await runner.prepare(arms)
    longest_round_seconds, end = 0.0, None
    open_now = dict.fromkeys(plan.policy.concurrencies, arms)
    for number in range(plan.max_rounds):
        started = runner.clock()
        if number and started + longest_round_seconds > runner.deadline:
            log.info("measure: no time for another round")
            break
        result = await runner.run(number, open_now)
        if result is None:
            break
        measurement.samples += result.samples
        await _compare_answers(runner, result, before.off_answers, measurement)
        round_seconds = runner.clock() - started
        longest_round_seconds = max(longest_round_seconds, round_seconds)
        rounds_left = int(min(plan.max_rounds - number - 1, (runner.deadline - runner.clock()) / longest_round_seconds))
        rounds_allowed = number + 1 + max(0, rounds_left)
        if number + 1 < rounds_allowed and not is_look(plan.policy, number + 1):
            continue
        so_far = measurement.samples, measurement.equalities(), plan.policy, before.samples
        verdict, early = judge(*so_far), judge(*so_far, confidence=Confidence.EARLY)
        measurement.verdicts.append(verdict)
        _log_round(number, plan.max_rounds, verdict, round_seconds)
        newer = await newer_version() if number + 1 >= plan.policy.min_rounds else None
        end = ending(Progress(plan.policy, verdict, early, number + 1, rounds_allowed, newer))
        if end is not None:
            break
        open_now = {c: tuple(arm for arm in arms if arm in open_) for c, open_ in open_arms(plan.policy, early).items()}
    if not measurement.samples:
        raise MeasurementError("not one round could be finished in time: raise validation.timeoutSeconds")
    if end is None:  # the time ended, perhaps some rounds after the last look
        last = judge(measurement.samples, measurement.equalities(), plan.policy, before.samples)
        measurement.verdicts.append(last)
        end = ending_of_last_round(last, "undecided: the time is used up")
    measurement.end = end
    return measurement


async def _compare_answers(runner: RoundRunner, result: RoundResult, off_before: Answers, into: Measurement) -> None:
    """Compare the answers of the round with off's, and in a round without off the candidate's with the active draft's.

    Greedy answers do not depend on the draft.
    """
    off_answers = off_before | result.answers_of(Arm.OFF)
    references = {Arm.CANDIDATE: result.answers_of(Arm.ACTIVE) | off_answers}
    for batch, batch_result in result.batches.items():
        counter = into.equality.get(batch.arm)
        for index, answer in zip(batch.prompts, batch_result.answers, strict=True):
            expected = references.get(batch.arm, off_answers).get((batch.concurrency, index))
            if counter is not None and answer is not None and expected is not None:
                prompt = runner.prompts[index]
                await counter.compare(
                    prompt.request, prompt.tokens, expected.tokens, answer.tokens, runner.engines.margin
                )


def _log_round(number: int, max_rounds: int, verdict: Verdict, seconds: float) -> None:
    ratios = "; ".join(
        f"{ratio.numerator}/{ratio.denominator}@{ratio.concurrency} {ratio.estimate:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        for ratio in verdict.ratios
        if ratio.numerator is Arm.CANDIDATE
    )
    log.info("measure: round %d of at most %d in %.0f s: %s: %s", number + 1, max_rounds, seconds, verdict.kind, ratios)
