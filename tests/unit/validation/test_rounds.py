"""Measurements on simulated engines: when measuring stops, and which samples and verdicts result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from aurora_api.v1alpha1.target import DType
from aurora_api.v1alpha1.validation import MAX_ROUNDS, PROMPTS_PER_ROUND, ValidationSpec
from aurora_protocol.evidence_records import Arm, MeasurementEnd, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.measured_engine import Answer, BatchResult, MeasuredEngine
from aurora_runtime.validation.rounds import (
    EqualityCounter,
    Measurement,
    MeasurementPlan,
    NewerWaits,
    RoundRunner,
    measure,
    near_tie_bound,
)
from aurora_runtime.validation.store_reads import Prompt

ARMS = (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE)
PROMPTS = [Prompt(number, (number, 1, 2)) for number in range(400)]
ANSWER = tuple(range(10, 30))


def plan(max_rounds: int = 12) -> MeasurementPlan:
    policy = GatePolicy(concurrencies=(1, 4), min_improvement=0.05, tolerance=0.05, min_rounds=4)
    return MeasurementPlan(policy, ARMS, max_rounds, prompts_per_worker=2)


def test_the_operator_knows_how_many_prompts_a_measurement_needs() -> None:
    spec = ValidationSpec(concurrencies=[2, 8, 4])
    planned = MeasurementPlan(GatePolicy.of(spec), ARMS, MAX_ROUNDS, PROMPTS_PER_ROUND)
    assert planned.prompts_needed == spec.prompts_needed == 32


@dataclass
class SimulatedEngines:
    """Engines that answer at given speeds, in virtual time."""

    speeds: dict[Arm, float]
    under_load: dict[Arm, float] = field(default_factory=dict)
    """Speeds above concurrency 1, where they differ."""
    wobble: float = 0.01
    answers: dict[Arm, tuple[int, ...]] = field(default_factory=dict)
    gap: float = 0.0
    fail: Arm | None = None
    failing_seconds: float = 0.0
    """How much longer a batch with a failed request takes."""
    now: float = 0.0
    prepared: Arm | None = None
    answered: list[tuple[Arm, Sequence[tuple[int, ...]]]] = field(default_factory=list)

    async def prepare(self, arm: Arm) -> None:
        self.prepared = arm
        self.now += 1.0

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        assert self.prepared is arm, "a batch ran on another arm's draft"
        self.answered.append((arm, prompts))
        tokens = self.answers.get(arm, ANSWER)
        # A deterministic wobble that differs between arms, so that intervals have a width.
        wobble = 1 + self.wobble * ((len(self.answered) * 7) % 5)
        speed = self.under_load.get(arm, self.speeds[arm]) if concurrency > 1 else self.speeds[arm]
        seconds = wobble * len(prompts) * len(tokens) / speed
        self.now += seconds
        answer = Answer(tokens, None if arm is Arm.OFF else len(tokens) // 2)
        answers: list[Answer | None] = [answer for _ in prompts]
        if self.fail is arm:
            answers[0] = None
            self.now += self.failing_seconds
        return BatchResult(tuple(answers), seconds)

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        assert prefix[-1] != one
        return self.gap

    def clock(self) -> float:
        return self.now


def engines(candidate: float, **extra: object) -> SimulatedEngines:
    return SimulatedEngines({Arm.OFF: 20.0, Arm.ACTIVE: 18.0, Arm.CANDIDATE: candidate}, **extra)  # type: ignore[arg-type]


def runner(simulated: SimulatedEngines, deadline: float = 1e9, max_rounds: int = 12) -> RoundRunner:
    return RoundRunner(cast(MeasuredEngine, simulated), PROMPTS, plan(max_rounds), deadline, simulated.clock)


async def no_newer_version() -> bool:
    return False


async def measured(
    simulated: SimulatedEngines,
    deadline: float = 1e9,
    max_rounds: int = 12,
    newer_waits: NewerWaits = no_newer_version,
) -> Measurement:
    return await measure(runner(simulated, deadline, max_rounds), newer_waits=newer_waits)


def rounds_of(result: Measurement) -> int:
    return len({sample.round for sample in result.samples})


async def test_a_clear_winner_stops_early_and_is_recorded() -> None:
    simulated = engines(40.0)
    result = await measured(simulated)
    assert result.verdicts[-1].kind is VerdictKind.PASS
    rounds = {s.round for s in result.samples}
    assert rounds == set(range(4)), "min_rounds is 4"
    assert len(result.samples) == 4 * len(ARMS) * 2
    assert result.end is MeasurementEnd.DECIDED
    assert result.acceptance_length() == {Arm.ACTIVE: 2.0, Arm.CANDIDATE: 2.0}
    equality = result.equality.record()
    assert equality.identical == equality.prompts > 0


def undecidable(wobble: float = 0.01) -> SimulatedEngines:
    """The candidate gains exactly the improvement that the policy demands."""
    simulated = engines(18.9, wobble=wobble)
    simulated.speeds[Arm.OFF] = 15.0
    return simulated


async def test_a_measurement_that_its_rounds_cannot_decide_ends_early_and_says_how_many_it_would_need() -> None:
    result = await measured(undecidable())
    assert result.verdicts[-1].kind is VerdictKind.INCONCLUSIVE
    assert 4 <= len(result.verdicts) < 12
    assert result.end is MeasurementEnd.HOPELESS


async def test_an_undecided_measurement_gives_way_to_a_newer_version_and_a_decided_one_does_not() -> None:
    async def newer() -> bool:
        return True

    undecided = await measured(undecidable(0.05), max_rounds=96, newer_waits=newer)
    assert undecided.verdicts[-1].kind is VerdictKind.INCONCLUSIVE
    assert undecided.end is MeasurementEnd.GAVE_WAY
    assert 20 <= rounds_of(undecided) < 25, "the first look after its share of five times the fewest rounds"
    decided = await measured(engines(40.0), newer_waits=newer)
    assert decided.verdicts[-1].kind is VerdictKind.PASS


async def test_rounds_leave_out_the_arms_and_concurrencies_where_all_is_decided() -> None:
    """At concurrency 4 the candidate is as fast as off, which takes more rounds to show than the rest."""
    under_load = {Arm.OFF: 20.0, Arm.ACTIVE: 10.0, Arm.CANDIDATE: 20.0}
    result = await measured(engines(40.0, under_load=under_load, wobble=0.015), max_rounds=96)
    rounds = {(a, c): sum((s.arm, s.concurrency) == (a, c) for s in result.samples) for a in ARMS for c in (1, 4)}
    assert {rounds[arm, 1] for arm in ARMS} == {rounds[Arm.ACTIVE, 4]} == {4}
    assert rounds[Arm.OFF, 4] == rounds[Arm.CANDIDATE, 4] > 4
    assert result.verdicts[-1].kind is VerdictKind.PASS


async def test_answers_in_a_round_without_off_are_compared_with_the_active_drafts() -> None:
    """At concurrency 1 only the gain over the active draft stays open. Only then the candidate answers otherwise."""
    simulated = engines(19.5, wobble=0.05, gap=3.0)
    simulated.speeds[Arm.OFF] = 5.0

    async def no_version() -> bool:
        simulated.answers = {Arm.CANDIDATE: ANSWER[:-1]}
        return False

    result = await measured(simulated, max_rounds=48, newer_waits=no_version)
    assert result.verdicts[-1].kind is VerdictKind.REJECT
    assert result.equality.record().different > 0


@pytest.mark.parametrize("late", ["between two rounds", "in a round"])
async def test_a_measurement_whose_time_ends_unexpectedly_is_decided_by_the_batches_that_ended(late: str) -> None:
    """The last verdict is final at the final level and not at the early one, and another round seemed to fit."""
    simulated = engines(40.0, wobble=0.12)

    async def time_passes() -> bool:
        if late == "in a round":
            simulated.speeds = {arm: speed / 1000 for arm, speed in simulated.speeds.items()}
        else:
            simulated.now += 1000.0
        return False

    result = await measured(simulated, 1000.0, newer_waits=time_passes)
    assert rounds_of(result) == (5 if late == "in a round" else 4)
    assert result.verdicts[-1].kind is VerdictKind.PASS
    assert result.end is MeasurementEnd.DECIDED


async def test_a_candidate_that_hangs_until_the_end_does_not_pass_by_the_rounds_before() -> None:
    simulated = engines(40.0, wobble=0.12, failing_seconds=10_000.0)

    async def candidate_hangs() -> bool:
        simulated.fail = Arm.CANDIDATE
        return False

    result = await measured(simulated, 5000.0, newer_waits=candidate_hangs)
    assert result.verdicts[0].kind is VerdictKind.INCONCLUSIVE
    assert result.verdicts[-1].kind is VerdictKind.REJECT


async def test_a_measurement_stops_before_a_round_that_would_end_too_late() -> None:
    simulated = engines(40.0)
    result = await measured(simulated, 130.0)
    assert simulated.now <= 130.0
    assert len(result.samples) == len(ARMS) * 2 * len(result.verdicts) > 0
    assert result.verdicts[-1].kind is VerdictKind.INCONCLUSIVE
    assert result.end is MeasurementEnd.BUDGET_USED


async def test_the_first_round_warms_every_arm_up_on_the_oldest_prompts_and_does_not_count() -> None:
    simulated = engines(40.0)
    result = await measured(simulated)
    warm_up = simulated.answered[: len(simulated.answered) - len(result.samples)]
    assert [arm for arm, _ in warm_up].count(Arm.CANDIDATE) == len(warm_up) / len(ARMS) == 2
    assert {prompt for _, prompts in warm_up for prompt in prompts} == {prompt.tokens for prompt in PROMPTS[-10:]}


@pytest.mark.parametrize("seconds", [3.0, 60.0])
async def test_no_time_for_one_round_is_an_error_not_a_verdict(seconds: float) -> None:
    with pytest.raises(MeasurementError, match="timeoutSeconds"):
        await measured(engines(40.0), seconds)


@pytest.mark.parametrize("arm", [Arm.OFF, Arm.ACTIVE])
async def test_failed_requests_of_an_arm_that_the_candidate_is_compared_with_are_an_error_not_a_verdict(
    arm: Arm,
) -> None:
    with pytest.raises(MeasurementError, match=f"failed on {arm}"):
        await measured(engines(40.0, fail=arm))


async def test_a_failing_candidate_is_rejected_without_further_rounds() -> None:
    simulated = engines(40.0, fail=Arm.CANDIDATE)
    result = await measured(simulated)
    assert [v.kind for v in result.verdicts] == [VerdictKind.REJECT]


@pytest.mark.parametrize(
    ("answer", "gap", "kind"),
    [
        ((*ANSWER[:5], 99, *ANSWER[6:]), 0.1, VerdictKind.PASS),
        ((*ANSWER[:5], 99, *ANSWER[6:]), 0.26, VerdictKind.REJECT),
        (ANSWER[:-1], 0.0, VerdictKind.REJECT),
    ],
    ids=["a near tie", "another token", "shorter"],
)
async def test_answers_may_differ_at_near_ties_only(answer: tuple[int, ...], gap: float, kind: VerdictKind) -> None:
    result = await measured(engines(40.0, answers={Arm.CANDIDATE: answer}, gap=gap))
    assert result.verdicts[-1].kind is kind
    equality = result.equality.record()
    assert (equality.identical, equality.different > 0) == (0, kind is VerdictKind.REJECT)


@pytest.mark.parametrize(
    ("dtype", "gap", "different"),
    [
        (DType.FLOAT32, 1e-4, 0),
        (DType.FLOAT32, 0.125, 1),
        (DType.BFLOAT16, 0.125, 0),
        (DType.BFLOAT16, 0.625, 1),
    ],
    ids=["float32 rounding", "float32 has no near ties", "one step of bfloat16", "beyond a near tie"],
)
async def test_float32_answers_are_identical_and_bfloat16_answers_differ_only_at_near_ties(
    dtype: DType, gap: float, different: int
) -> None:
    async def margin(prefix: object, one: int, other: int) -> float:
        return gap

    counter = EqualityCounter(near_tie_bound(dtype))
    await counter.compare(0, (1, 2), (5, 6, 7), (5, 9, 7), margin)
    found = counter.record()
    assert (found.identical, found.near_ties, found.different) == (0, 1 - different, different)
