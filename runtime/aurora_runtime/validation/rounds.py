"""Measures a candidate in rounds, and decides after each look whether further rounds follow.

Rounds are small: at every concurrency each arm answers one prompt for each request at a time. The samples are looked at
after the policy's fewest rounds and then whenever there are a quarter more (:func:`is_look`), so a clear candidate is
decided soon, and a long measurement has few looks. Further rounds leave out what is decided. A measurement ends when

- it is decided: its verdict is final at the early confidence level;
- it is hopeless: with the rounds that are left it would pass with a probability below :data:`MIN_CHANCE`;
- it gives way: a newer version waits, and the measurement has had :data:`SHARE` times ``min_rounds``;
- its rounds or its time are used up.

The final confidence level decides once, when the measurement ends for a reason that its ratios do not choose: its
rounds or its time are used up, or it has had its share of rounds while a newer version waits. A verdict that is
final only at that level does not end a measurement early. At the end it counts as decided.

Invariants: a measurement whose stored verdict is final ends as decided, and no other does. Within a round and a
concurrency every arm answers the same prompts, one arm right after the other. The two drafts change their order from
turn to turn, so that neither is always first, and the draft that ends a turn begins the next one: no swap lies between
them. The other arms need no swap and wander through the turn. A sample is a whole batch, taken after the engine was
prepared outside the clock. A failed request of the candidate is always in a sample, also when the time ends.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from aurora_api.v1alpha1.target import DType
from aurora_api.v1alpha1.validation import PROMPTS_NEEDED, Baseline
from aurora_protocol.evidence_records import (
    AnswerEquality,
    Arm,
    MeasurementEnd,
    RatioEstimate,
    Sample,
    Verdict,
    VerdictKind,
)
from aurora_protocol.gate import GatePolicy, judge
from aurora_protocol.gate.throughput_ratios import Confidence, t_quantile
from aurora_protocol.gate.verdict import Bar, bars
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.measured_engine import Answer, BatchResult, MeasuredEngine
from aurora_runtime.validation.store_reads import Prompt

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARE: Final = 5
"""How many times the policy's fewest rounds an undecided measurement may take while a newer version waits."""
MIN_CHANCE: Final = 0.05
"""Probability of a pass below which further rounds are not worth their time."""
LOOK_GROWTH: Final = 1.25
"""How many times as many rounds there are at each look as at the one before."""
FINAL_VERDICTS: Final = frozenset({VerdictKind.PASS, VerdictKind.REJECT})
NEAR_TIE_LOGIT_GAP = 0.25
"""Largest gap of two logits that counts as a tie, in exact arithmetic."""
HALF_PRECISION_SLACK = 0.25
"""What computing again in half precision may add to a gap: one step of 0.125 for each of the two logits."""
FLOAT32_LOGIT_GAP = 0.01
"""How far another order of summation may move float32 logits, with a margin. Answers are otherwise identical."""
Margin = Callable[[Sequence[int], int, int], Awaitable[float]]
"""``margin(prefix, one, other)``: the gap between the log-probabilities of two tokens after ``prefix``."""
NewerWaits = Callable[[], Awaitable[bool]]
"""Asks the store whether a newer version waits to be measured."""
DRAFT_ARMS: Final = (Arm.ACTIVE, Arm.CANDIDATE)
"""The arms between which the engine swaps."""
WARM_UP_ROUND: Final = -1
"""The number of the round that does not count. It takes the oldest prompts."""


def near_tie_bound(dtype: DType) -> float:
    """The largest gap of two logits that counts as a tie on an engine that computes in ``dtype``."""
    return FLOAT32_LOGIT_GAP if dtype is DType.FLOAT32 else NEAR_TIE_LOGIT_GAP + HALF_PRECISION_SLACK


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


Results = dict[Batch[Arm], BatchResult]
"""The batches of a round that have ended."""


@dataclass(frozen=True)
class RoundRunner:
    """Runs rounds until ``deadline``, which is on ``clock``, in seconds."""

    engine: MeasuredEngine
    prompts: Sequence[Prompt]
    plan: MeasurementPlan
    deadline: float
    clock: Callable[[], float] = time.monotonic

    async def run(self, number: int, arms: Mapping[int, Sequence[Arm]]) -> Results:
        """Run round ``number``. No batch of it begins after the deadline, and one that has begun ends.

        Args:
            arms: the arms to measure at each concurrency. A concurrency without arms is left out.

        Raises :class:`MeasurementError` when requests fail on an arm that the candidate is compared with.
        """
        results: Results = {}
        schedule = batches(
            number,
            DRAFT_ARMS,
            [arm for arm in self.plan.arms if arm not in DRAFT_ARMS],
            self.plan.policy.concurrencies,
            prompts_per_worker=self.plan.prompts_per_worker,
            available=len(self.prompts),
        )
        for batch in (b for b in schedule if b.arm in arms.get(b.concurrency, ())):
            if self.clock() > self.deadline:
                break
            prompts = [self.prompts[index].tokens for index in batch.prompts]
            await self.engine.prepare(batch.arm)  # which may take long where the engine hangs
            if self.clock() > self.deadline:
                break
            results[batch] = await self.engine.run(batch.arm, prompts, batch.concurrency)
            if batch.arm in (Arm.OFF, Arm.ACTIVE) and (failures := results[batch].failures):
                raise MeasurementError(f"{failures} requests failed on {batch.arm}: see the engine's log")
        return results


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two answers differ, possibly the shorter one's end. None when they are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


@dataclass
class EqualityCounter:
    """Counts how the candidate's greedy answers compare (promise 2). A prompt counts once: its first answers decide.

    Two answers are equal when they are identical, or when their first difference is a near tie: two tokens whose logits
    lie within a bound. Half-precision logits between 16 and 32 have steps of 0.125 (bf16), so answers cannot be
    identical across batch shapes. In fp32 they are identical.

    The engine computes both logits again on the common prefix, as coarsely as before: margins seen on SmolLM2 in bf16
    are multiples of 0.125, hence the slack. A draft plays no part in that, because the first token of an answer comes
    from the target's prefill.
    """

    bound: float
    """Largest gap of two logits that counts as a near tie."""
    _outcomes: dict[int, str] = field(default_factory=dict, init=False)
    """The name of the count in the record, by request."""

    async def compare(
        self, request: int, prompt: Sequence[int], expected: Sequence[int], answer: Sequence[int], margin: Margin
    ) -> None:
        """Compare one answer with ``expected``, another arm's."""
        if request in self._outcomes:
            return
        index, outcome = first_difference(expected, answer), "different"
        if index is None:
            outcome = "identical"
        elif index < min(len(expected), len(answer)):  # otherwise one answer ends earlier: no two tokens to compare
            gap = await margin([*prompt, *expected[:index]], expected[index], answer[index])
            outcome = "near_ties" if gap <= self.bound else "different"
        self._outcomes[request] = outcome

    def record(self) -> AnswerEquality:
        """The counts so far."""
        outcomes = list(self._outcomes.values())
        counts = {name: outcomes.count(name) for name in ("identical", "near_ties", "different")}
        return AnswerEquality(arm=Arm.CANDIDATE, prompts=len(outcomes), **counts)


def chance(lead: float, deviation: float, rounds: int, last: int) -> float:
    """Probability that a ratio clears its bar after round ``last``, from what is known after ``rounds`` rounds.

    The forecast assumes normal noise, as Student's t does. After n rounds with mean m and standard deviation s, the
    mean of N rounds is normal around m with the variance s^2 (1/n - 1/N), and the half-width of its interval is
    t s / sqrt(N). This is the predictive power of Spiegelhalter, Freedman and Blackburn (1986) with a flat prior.

    Args:
        lead: logarithm of the ratio minus that of the bar. Negative: the candidate is below the bar.
        deviation: standard deviation of a round's logarithm.
    """
    half_width = t_quantile(last - 1) * deviation / math.sqrt(last)
    spread = deviation * math.sqrt(1 / rounds - 1 / last)
    if spread == 0.0:
        return float(lead >= half_width)
    return 1 - statistics.NormalDist(lead, spread).cdf(half_width)


def ending(
    policy: GatePolicy, verdict: Verdict, early: Verdict, *, rounds: int, rounds_allowed: int, newer_waits: bool
) -> MeasurementEnd | None:
    """Why the measurement ends after this look; None while it goes on.

    Args:
        verdict: at the final confidence level.
        early: at the early confidence level.
        rounds: rounds done.
        rounds_allowed: rounds that fit into the budget and into the time, those done included.
        newer_waits: whether a newer version waits to be measured. The trainer registers a version only if its held-out
            acceptance, on the traffic of now, is larger than the former version's.
    """
    if early.kind in FINAL_VERDICTS:
        return MeasurementEnd.DECIDED
    if rounds >= rounds_allowed or (newer_waits and rounds >= SHARE * policy.min_rounds):
        if verdict.kind in FINAL_VERDICTS:
            return MeasurementEnd.DECIDED
        return MeasurementEnd.GAVE_WAY if newer_waits else MeasurementEnd.BUDGET_USED
    if rounds < policy.min_rounds or verdict.kind in FINAL_VERDICTS:
        return None
    return MeasurementEnd.HOPELESS if _chance_of_a_pass(policy, verdict, early, rounds_allowed) < MIN_CHANCE else None


def is_look(policy: GatePolicy, rounds: int) -> bool:
    """Whether the samples are looked at after ``rounds`` rounds.

    Before the fewest rounds no ratio decides, but a failed request or another answer does.
    """
    look = policy.min_rounds
    while look < rounds:
        look = max(look + 1, math.ceil(LOOK_GROWTH * look))
    return look == rounds or rounds < policy.min_rounds


def open_arms(policy: GatePolicy, early: Verdict) -> dict[int, set[Arm]]:
    """The arms to measure at each concurrency in the next rounds: those of a bar that the early level does not decide.

    All while there are too few rounds, or when only something else than a bar is open. NGRAM, which no bar names, goes
    on with its concurrency.
    """
    open_: dict[int, set[Arm]] = {}
    for bar in bars(policy):
        ratio = _ratio_of(bar, early)
        if ratio is None or ratio.rounds < policy.min_rounds or _straddles(bar, ratio):
            open_.setdefault(bar.concurrency, {Arm.NGRAM}).update((bar.numerator, bar.denominator))
    return open_ or {concurrency: set(Arm) for concurrency in policy.concurrencies}


def _ratio_of(bar: Bar, verdict: Verdict) -> RatioEstimate | None:
    names = (bar.numerator, bar.denominator, bar.concurrency)
    return next((r for r in verdict.ratios if (r.numerator, r.denominator, r.concurrency) == names), None)


def _straddles(bar: Bar, ratio: RatioEstimate) -> bool:
    return ratio.low < bar.minimum_ratio <= ratio.high


def _chance_of_a_pass(policy: GatePolicy, verdict: Verdict, early: Verdict, last: int) -> float:
    """An upper bound of the probability that every bar is cleared: that of the open bar with the worst outlook."""
    chances = [1.0]
    for bar in bars(policy):
        ratio, at_early_level = _ratio_of(bar, verdict), _ratio_of(bar, early)
        if ratio and at_early_level and _straddles(bar, at_early_level):
            half_width = math.log(ratio.high / ratio.low) / 2
            deviation = half_width * math.sqrt(ratio.rounds) / t_quantile(ratio.rounds - 1)
            lead = math.log(ratio.estimate / bar.minimum_ratio)
            chances.append(chance(lead, deviation, ratio.rounds, max(ratio.rounds, last)))
    return min(chances)


@dataclass
class Measurement:
    """The samples of a measurement, and the verdict of each look."""

    equality: EqualityCounter
    """The comparison of the candidate's greedy answers."""
    samples: list[Sample] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    end: MeasurementEnd = MeasurementEnd.DECIDED
    """Counts once the measurement has ended."""

    @classmethod
    def rejected_unmeasured(cls, reason: str) -> Measurement:
        """The result for a candidate that no pod would load: a rejection without samples."""
        verdict = Verdict(kind=VerdictKind.REJECT, reasons=(f"no pod would load the draft: {reason}",), ratios=())
        return cls(EqualityCounter(NEAR_TIE_LOGIT_GAP), verdicts=[verdict])

    def judge(self, policy: GatePolicy, confidence: Confidence = Confidence.FINAL) -> Verdict:
        """The verdict of the samples so far."""
        return judge(self.samples, [self.equality.record()], policy, confidence=confidence)

    def acceptance_length(self) -> dict[Arm, float]:
        """Answer tokens per verify round over all samples, for each arm that speculates."""
        lengths = {}
        for arm in Arm:
            samples = [sample for sample in self.samples if sample.arm is arm and sample.verify_rounds]
            if rounds := sum(sample.verify_rounds or 0 for sample in samples):
                lengths[arm] = sum(sample.tokens for sample in samples) / rounds
        return lengths


async def measure(runner: RoundRunner, *, newer_waits: NewerWaits) -> Measurement:
    """Measure round by round, after a round that does not count.

    The controller of a fresh engine has to try its arms at each number of requests at a time, and the draft that is
    measured first would pay for that.

    Raises :class:`MeasurementError` when not even one round fits into the time, or as :meth:`RoundRunner.run` does.
    """
    plan, policy = runner.plan, runner.plan.policy
    measurement = Measurement(EqualityCounter(plan.near_tie_bound))
    open_now: dict[int, tuple[Arm, ...]] = dict.fromkeys(policy.concurrencies, plan.arms)
    await runner.run(WARM_UP_ROUND, open_now)
    rounds, rounds_allowed, longest_round_seconds = 0, plan.max_rounds, 0.0
    while True:
        started = runner.clock()
        results = await runner.run(rounds, open_now)
        measurement.samples += [_sample(rounds, batch, result) for batch, result in results.items()]
        await _compare_answers(runner, results, measurement.equality)
        rounds, now = rounds + 1, runner.clock()
        failed = any(sample.arm is Arm.CANDIDATE and sample.failures for sample in measurement.samples)
        if rounds == 1 and now > runner.deadline and not failed:
            raise MeasurementError("not one round could be finished in time: raise validation.timeoutSeconds")
        longest_round_seconds = max(longest_round_seconds, now - started)
        rounds_left = max(0, int((runner.deadline - now) / longest_round_seconds))
        rounds_allowed = min(plan.max_rounds, rounds + rounds_left)
        if rounds < rounds_allowed and not is_look(policy, rounds):
            continue
        verdict, early = measurement.judge(policy), measurement.judge(policy, Confidence.EARLY)
        measurement.verdicts.append(verdict)
        reasons = "; ".join(verdict.reasons)
        log.info("measure: round %d of at most %d: %s: %s", rounds, rounds_allowed, verdict.kind, reasons)
        newer = rounds >= policy.min_rounds and await newer_waits()
        end = ending(policy, verdict, early, rounds=rounds, rounds_allowed=rounds_allowed, newer_waits=newer)
        if end is not None:
            measurement.end = end
            return measurement
        open_now = {c: tuple(arm for arm in plan.arms if arm in open_) for c, open_ in open_arms(policy, early).items()}


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


async def _compare_answers(runner: RoundRunner, results: Results, equality: EqualityCounter) -> None:
    """Compare the candidate's answers with off's, and in a round without off with the active draft's.

    Greedy answers do not depend on the draft.
    """
    references = _answers_of(Arm.ACTIVE, results) | _answers_of(Arm.OFF, results)
    for place, answer in _answers_of(Arm.CANDIDATE, results).items():
        if expected := references.get(place):
            prompt = runner.prompts[place[1]]
            await equality.compare(prompt.request, prompt.tokens, expected.tokens, answer.tokens, runner.engine.margin)


def _answers_of(arm: Arm, results: Results) -> dict[tuple[int, int], Answer]:
    """The answers of ``arm`` by concurrency and index of the prompt, without failed requests."""
    return {
        (batch.concurrency, index): answer
        for batch, result in results.items()
        if batch.arm is arm
        for index, answer in zip(batch.prompts, result.answers, strict=True)
        if answer is not None
    }
