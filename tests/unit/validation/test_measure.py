"""Rounds on a simulated bench: when measuring stops, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from aurora_protocol.evidence_records import Arm, BaselineSamples, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.held_out_prompts import Prompt
from aurora_runtime.validation.load_client import Answer, BatchResult
from aurora_runtime.validation.measure import MeasurePlan, measure, measure_apart

ARMS = (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE)
PROMPTS = [Prompt(number, (number, 1, 2)) for number in range(40)]
ANSWER = tuple(range(10, 30))


def plan(max_rounds: int = 9) -> MeasurePlan:
    policy = GatePolicy(concurrencies=(1, 4), min_improvement=0.05, tolerance=0.05, min_rounds=4)
    return MeasurePlan(policy, ARMS, max_rounds, prompts_per_worker=2)


@dataclass
class Bench:
    """Answers at set speeds in virtual time."""

    speeds: dict[Arm, float]
    answers: dict[Arm, tuple[int, ...]] = field(default_factory=dict)
    gap: float = 0.0
    fail: Arm | None = None
    now: float = 0.0
    prepared: Arm | None = None
    turns: int = 0

    async def ready(self, arm: Arm) -> None:
        self.prepared = arm
        self.now += 1.0

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        assert self.prepared is arm, "a batch ran on another arm's draft"
        self.turns += 1
        tokens = self.answers.get(arm, ANSWER)
        # a deterministic wobble, other for each arm, so that intervals have a width
        wobble = 1 + 0.01 * ((self.turns * 7) % 5)
        seconds = wobble * len(prompts) * len(tokens) / self.speeds[arm]
        self.now += seconds
        answer = Answer(tokens, None if arm is Arm.OFF else len(tokens) // 2)
        answers: list[Answer | None] = [answer for _ in prompts]
        if self.fail is arm:
            answers[0] = None
        return BatchResult(tuple(answers), seconds)

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        assert prefix[-1] != one
        return self.gap

    def clock(self) -> float:
        return self.now


def bench(candidate: float, **extra: object) -> Bench:
    return Bench({Arm.OFF: 20.0, Arm.ACTIVE: 18.0, Arm.CANDIDATE: candidate}, **extra)  # type: ignore[arg-type]


async def test_a_clear_winner_stops_early_and_is_recorded() -> None:
    simulated = bench(40.0)
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert result.verdicts[-1].kind is VerdictKind.PASS
    rounds = {s.round for s in result.samples}
    assert rounds == set(range(5)), "min_rounds is 4, and a verdict must be seen twice"
    assert len(result.samples) == 5 * len(ARMS) * 2
    assert result.acceptance_length() == {Arm.ACTIVE: 2.0, Arm.CANDIDATE: 2.0}
    (active, candidate) = result.equalities()
    assert candidate.identical == candidate.prompts == active.prompts > 0


async def test_a_clear_loser_stops_early() -> None:
    simulated = bench(10.0)
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert result.verdicts[-1].kind is VerdictKind.REJECT
    assert len(result.verdicts) == 5


async def test_an_open_question_uses_all_rounds() -> None:
    simulated = bench(18.9)
    simulated.speeds[Arm.OFF] = 15.0
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert result.verdicts[-1].kind is VerdictKind.INCONCLUSIVE
    assert len(result.verdicts) == 9


async def test_the_deadline_leaves_whole_rounds_only() -> None:
    simulated = bench(40.0)
    result = await measure(simulated, PROMPTS, plan(), deadline=130.0, clock=simulated.clock)
    assert simulated.now <= 130.0 + 30.0
    per_round = len(ARMS) * 2
    assert len(result.samples) == per_round * len(result.verdicts) > 0
    assert result.verdicts[-1].kind is VerdictKind.INCONCLUSIVE


async def test_no_time_for_one_round_is_an_error_not_a_verdict() -> None:
    simulated = bench(40.0)
    with pytest.raises(MeasurementError, match="timeoutSeconds"):
        await measure(simulated, PROMPTS, plan(), deadline=3.0, clock=simulated.clock)


async def test_a_failing_baseline_is_an_error_not_a_verdict() -> None:
    simulated = bench(40.0, fail=Arm.OFF)
    with pytest.raises(MeasurementError, match="without speculation"):
        await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)


async def test_a_failing_candidate_is_rejected_without_further_rounds() -> None:
    simulated = bench(40.0, fail=Arm.CANDIDATE)
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert [v.kind for v in result.verdicts] == [VerdictKind.REJECT] * 2


@pytest.mark.parametrize(
    ("gap", "kind"), [(0.1, VerdictKind.PASS), (0.26, VerdictKind.REJECT), (3.0, VerdictKind.REJECT)]
)
async def test_answers_may_differ_at_near_ties_only(gap: float, kind: VerdictKind) -> None:
    simulated = bench(40.0, answers={Arm.CANDIDATE: (*ANSWER[:5], 99, *ANSWER[6:])}, gap=gap)
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert result.verdicts[-1].kind is kind
    candidate = result.equalities()[1]
    assert candidate.largest_margin == gap
    assert candidate.identical == 0


async def test_a_shortened_answer_is_different() -> None:
    simulated = bench(40.0, answers={Arm.CANDIDATE: ANSWER[:-1]})
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    assert result.equalities()[1].different > 0
    assert result.verdicts[-1].kind is VerdictKind.REJECT


async def apart(simulated: Bench) -> BaselineSamples:
    samples, _ = await measure_apart(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    return BaselineSamples(key="k", samples=tuple(samples), created=datetime(2026, 1, 1, tzinfo=UTC))


async def test_with_a_baseline_only_the_drafts_are_measured_and_the_active_one_is_compared_with() -> None:
    simulated = bench(40.0)
    baseline = await apart(simulated)
    control = {(arm, number) for arm in (Arm.ACTIVE, Arm.OFF) for number in range(4)}
    assert {(s.arm, s.round) for s in baseline.samples} == control
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock, baseline=baseline)
    assert result.verdicts[-1].kind is VerdictKind.PASS
    assert {s.arm for s in result.samples} == {Arm.ACTIVE, Arm.CANDIDATE}
    (candidate,) = result.equalities()
    assert (candidate.arm, candidate.reference) == (Arm.CANDIDATE, Arm.ACTIVE)
    assert candidate.identical == candidate.prompts > 0
    assert result.acceptance_length() == {Arm.ACTIVE: 2.0, Arm.CANDIDATE: 2.0}


async def test_answers_of_off_that_were_just_seen_are_compared_with_both_drafts() -> None:
    simulated = bench(40.0, answers={Arm.CANDIDATE: (*ANSWER[:5], 99, *ANSWER[6:])}, gap=3.0)
    samples, known = await measure_apart(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock)
    baseline = BaselineSamples(key="k", samples=tuple(samples), created=datetime(2026, 1, 1, tzinfo=UTC))
    result = await measure(
        simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock, baseline=baseline, known=known
    )
    assert result.verdicts[-1].kind is VerdictKind.REJECT
    active, candidate = result.equalities()
    assert (active.reference, candidate.reference) == (Arm.OFF, Arm.OFF)
    assert active.identical == active.prompts > 0
    assert candidate.different > 0


async def test_an_active_draft_that_fails_a_request_leaves_the_others_to_compare() -> None:
    simulated = bench(40.0)
    baseline = await apart(simulated)
    simulated.fail = Arm.ACTIVE
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock, baseline=baseline)
    assert result.verdicts[-1].kind is VerdictKind.INCONCLUSIVE
    assert result.equalities()[0].prompts > 0


async def test_a_baseline_that_does_not_fit_is_an_error_not_a_verdict() -> None:
    simulated = bench(40.0)
    with pytest.raises(MeasurementError, match="timeoutSeconds"):
        await measure_apart(simulated, PROMPTS, plan(), deadline=20.0, clock=simulated.clock)


async def test_a_machine_that_became_faster_flatters_no_candidate() -> None:
    """Everything became twice as fast after off was measured: 1.9 times off's old speed is less than its new one."""
    simulated = Bench({Arm.OFF: 20.0, Arm.ACTIVE: 15.0, Arm.CANDIDATE: 19.0})
    baseline = await apart(simulated)
    simulated.speeds = {arm: 2 * speed for arm, speed in simulated.speeds.items()}
    result = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock, baseline=baseline)
    assert VerdictKind.PASS not in {v.kind for v in result.verdicts}
    blind = baseline.model_copy(update={"samples": tuple(s for s in baseline.samples if s.arm is Arm.OFF)})
    fooled = await measure(simulated, PROMPTS, plan(), deadline=1e9, clock=simulated.clock, baseline=blind)
    assert fooled.verdicts[-1].kind is VerdictKind.PASS, "without the control it would have passed"
