"""The measurement of served drafts is fair: every arm answers the same prompts once. The tables match the samples."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.evidence_records import AnswerEquality
from aurora_protocol.evidence_records import Arm as GateArm
from aurora_protocol.gate import paired_ratio
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.load_client import Answer, BatchResult
from tests.bench.served import messages
from tests.bench.served.lineup import TRAINED, Lineup, lineup_of, with_controller
from tests.bench.served.live_training import Checkpoint, LiveTraining, TrainingRecord, VersionPeriod
from tests.bench.served.paired_rounds import ArmSummary, BatchCounts, Measured, MeasurementPlan, Sample, measure
from tests.bench.served.round_shapes import parse_shape, unroll_steps
from tests.bench.served.servers import OFF, Arm
from tests.bench.served.speed_report import (
    Outcome,
    controller_lines,
    explain_difference,
    goal_lines,
    ngram_lines,
    section,
    speed_table,
)
from tests.bench.stream_timing import StepTiming

CHECKPOINTS = [
    Checkpoint(FetchedDraft(Path("0"), 0), TrainingRecord(0, 0, 0, 0, 0.0, 0, 0.0)),
    Checkpoint(FetchedDraft(Path("1"), 1), TrainingRecord(19_950, 600, 700, 340_000, 350.0, 4, 90.0)),
]
LINEUP = lineup_of(CHECKPOINTS, (4, 12))
PLAN = MeasurementPlan(LINEUP.arms, (1, 4), rounds=8, prompts_per_worker=4, near_tie_gap=0.5)


def test_the_draft_server_starts_untrained_and_is_shared() -> None:
    assert [arm.name for arm in LINEUP.arms] == [
        "off", "NGRAM, 4 tokens", "NGRAM, 12 tokens", "EAGLE-3 untrained", "EAGLE-3 after 19.9k",
    ]  # fmt: skip
    assert list(LINEUP.servers) == ["off", "ngram-4", "ngram-12", "draft"]
    assert {arm.server for arm in LINEUP.arms[3:]} == {"draft"}


def test_with_the_same_history_all_servers_but_the_fresh_pod_s_answer_the_traffic_first(tmp_path: Path) -> None:
    lineup = with_controller(lineup_of(CHECKPOINTS[-1:], (4,)), CHECKPOINTS, DraftSpec(), tmp_path)
    assert lineup.experienced == ("ngram-4", "controlled-1", "controlled-2")
    same = dataclasses.replace(lineup, same_history=True)
    assert same.experienced == ("off", "ngram-4", "draft", "controlled-1", "controlled-2")
    assert [arm.name for arm in same.arms if arm.server == "draft"] == ["EAGLE-3 after 19.9k"], "so it never swaps"


def test_further_shapes_have_servers_of_their_own_and_the_last_draft() -> None:
    lineup = lineup_of(CHECKPOINTS, (4,), [parse_shape(text) for text in ("3", "5", "2x3x8")])
    assert [arm.name for arm in lineup.arms[-3:]] == [
        "EAGLE-3 after 19.9k", "EAGLE-3 after 19.9k, 5 steps", "EAGLE-3 after 19.9k, 2 steps, 3 branches, 8 tokens",
    ]  # fmt: skip
    assert lineup.trained == tuple(arm.name for arm in lineup.arms[-3:])
    kinds = [lineup.servers[arm.server] for arm in lineup.arms[-3:]]
    specs = [kind.spec for kind in kinds if isinstance(kind, Eagle3)]
    assert [(spec.steps, spec.branching, spec.tokens_per_round) for spec in specs] == [(3, 1, 4), (5, 1, 6), (2, 3, 8)]
    assert unroll_steps(specs) == 5
    assert unroll_steps([parse_shape("16")]) == 8


@pytest.mark.parametrize("text", ["", "x", "3x2", "2x3x8x1", "three"])
def test_a_shape_that_is_neither_a_chain_nor_a_tree_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_shape(text)


def test_every_arm_is_asked_the_same_prompts_and_none_twice() -> None:
    asked = Counter[tuple[str, int]]()
    first = Counter[str]()
    for number in range(PLAN.rounds):
        turns = PLAN.batches_of(number)
        assert len({t.prompts for t in turns}) == len(PLAN.concurrencies)
        asked.update((turn.arm.name, prompt) for turn in turns for prompt in turn.prompts)
        first[turns[0].arm.name] += 1
    assert PLAN.prompts_needed <= min(messages.RESERVED_MESSAGES.values())
    assert set(asked) == {(arm.name, prompt) for arm in PLAN.arms for prompt in range(PLAN.prompts_needed)}
    assert set(asked.values()) == {1}
    assert len(first) == len(PLAN.arms), "no arm is always first"


@pytest.mark.parametrize("domain", messages.DOMAINS)
def test_reserved_messages_are_never_traffic(domain: str) -> None:
    traffic, reserved = messages.traffic(domain), messages.reserved(domain)
    assert len(reserved) == messages.RESERVED_MESSAGES[domain]
    assert len({*traffic, *reserved}) == len(traffic) + len(reserved) > 1000


def kinds_of(texts: Sequence[str]) -> list[str]:
    """The kind of each message of mixed traffic."""
    openings = {
        "Extract name": "json",
        "Write one SQL": "sql",
        "Write the docstring": "docstrings",
        "Write the first": "prose",
    }
    return [next(kind for opening, kind in openings.items() if text.startswith(opening)) for text in texts]


def test_mixed_traffic_has_each_kind_equally_often_and_in_no_order() -> None:
    kinds = kinds_of(messages.traffic("mixed"))
    for start in range(0, len(kinds) - 400, 400):
        counts = Counter(kinds[start : start + 400])
        assert set(counts) == set(messages.MIXED)
        assert min(counts.values()) > 60, "each kind comes all the time"
    assert sum(one == next_one for one, next_one in itertools.pairwise(kinds)) > len(kinds) / 8, "not in turn"


def test_traffic_in_turn_has_one_kind_in_each_measured_round() -> None:
    kinds = kinds_of(messages.traffic("turns") + messages.reserved("turns"))
    turns = [kinds[first : first + messages.TURN_MESSAGES] for first in range(0, len(kinds), messages.TURN_MESSAGES)]
    assert [set(turn) for turn in turns] == [{kind} for kind in messages.MIXED] * (len(turns) // len(messages.MIXED))
    per_round = PLAN.prompts_needed // PLAN.rounds
    assert messages.RESERVED_MESSAGES["turns"] % messages.TURN_MESSAGES == 0
    assert per_round <= messages.TURN_MESSAGES


class FakeServers:
    """Answers without servers: a prompt's own tokens and one more. The arm ``odd`` ends with another token."""

    def __init__(self, odd: str = "", failing: str = "") -> None:
        self.odd, self.failing = odd, failing
        self.prepared_for = list[tuple[str, int]]()
        self.warmups = defaultdict[str, list[int]](list)

    async def prepare(self, arm: Arm, concurrency: int, first_warmup: int) -> list[StepTiming]:
        self.prepared_for.append((arm.name, concurrency))
        self.warmups[arm.name] += range(first_warmup, first_warmup + concurrency)
        return [StepTiming(20.0)] * concurrency

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult:
        assert self.prepared_for[-1] == (arm.name, concurrency)
        rounds = None if arm.server == OFF else 2
        last = 9 if arm.name == self.odd else 5
        answers = [None if arm.name == self.failing else Answer((*prompt, last), rounds) for prompt in prompts]
        return BatchResult(tuple(answers), 1.0)

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        return 3.0


def decode(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


async def test_a_different_answer_is_counted() -> None:
    prompts = [[number, 1, 2, 3] for number in range(PLAN.prompts_needed)]
    measured = await measure(FakeServers(odd="NGRAM, 4 tokens"), PLAN, prompts, decode)
    assert measured.equality["NGRAM, 4 tokens"].different == PLAN.prompts_needed
    assert measured.equality["EAGLE-3 untrained"].identical == PLAN.prompts_needed
    assert "off" not in measured.equality
    assert (measured.distinct_4grams, measured.distinct_answers) == (1.0, 1.0)
    assert measured.summary("off", 4) == ArmSummary(16 * 5, None, 20.0)
    assert measured.summary("EAGLE-3 untrained", 1) == ArmSummary(4 * 5, 2.0, 20.0)


async def test_no_arm_is_asked_a_warmup_request_twice() -> None:
    servers, prompts = FakeServers(), [[number, 1, 2, 3] for number in range(PLAN.prompts_needed)]
    await measure(servers, PLAN, prompts, decode)
    assert set(servers.warmups) == {arm.name for arm in PLAN.arms}
    for asked in servers.warmups.values():
        assert sorted(asked) == list(range(PLAN.warmups_needed))


async def test_failures_without_speculation_end_the_measurement_and_others_are_counted() -> None:
    prompts = [[number] for number in range(PLAN.prompts_needed)]
    with pytest.raises(MeasurementError, match="without speculation"):
        await measure(FakeServers(failing="off"), PLAN, prompts, decode)
    measured = await measure(
        FakeServers(failing="NGRAM, 4 tokens"), dataclasses.replace(PLAN, rounds=1), prompts, decode
    )
    assert sum(s.counts.failures for s in measured.samples) == 20


def outcome(speeds: dict[str, float], noise: float = 0.01, lineup: Lineup = LINEUP) -> Outcome:
    """Arms with about the given tok/s at concurrency 1 and 4. ``noise`` is the largest deviation, as a share."""
    rng = random.Random(1)  # noqa: S311 - made-up samples
    costs = {"off": (20.0, None), "NGRAM, 4 tokens": (22.0, 40), "NGRAM, 12 tokens": (44.0, 40)}
    samples = []
    for number in range(8):
        for arm in lineup.arms:
            for concurrency in PLAN.concurrencies:
                ms, rounds = costs.get(arm.name, (30.0, 36))
                deviation = 1 + noise * rng.uniform(-1, 1)
                seconds = 100 / (speeds[arm.name] * deviation)
                counts = BatchCounts(4, 100, seconds, rounds, 0)
                samples.append(Sample(arm.name, concurrency, number, counts, (ms, ms, ms)))
    same = AnswerEquality(arm=GateArm.CANDIDATE, prompts=5, identical=4, near_ties=1, different=0, largest_margin=0.1)
    measured = Measured(tuple(samples), {"EAGLE-3 untrained": same}, 0.97, 1.0)
    periods = [VersionPeriod(0, 1_400, 1.004), VersionPeriod(1, 9_000, None), VersionPeriod(2, 19_950, 2.71)]
    plan = dataclasses.replace(PLAN, arms=lineup.arms)
    return Outcome("json", plan, measured, lineup, LiveTraining(DraftSpec(), 3, CHECKPOINTS, periods), 565)


SPEEDS = {
    "off": 40.0,
    "NGRAM, 4 tokens": 110.0,
    "NGRAM, 12 tokens": 50.0,
    "EAGLE-3 untrained": 30.0,
    "EAGLE-3 after 19.9k": 90.0,
}


def test_the_report_says_why_ngram_wins() -> None:
    first, second = ngram_lines(outcome(SPEEDS))
    assert first.startswith("concurrency 1: NGRAM, 4 tokens still wins, EAGLE-3 after 19.9k is 0.82x [")
    assert "acceptance length 2.67 against 2.40 (1.11x), a round costs 30.0 against 22.0 ms (1.36x)" in first
    assert first.endswith("at these costs the draft needs 3.27 to be as fast")
    assert second.startswith("concurrency 4: ")


def test_a_draft_that_is_faster_beats_the_fastest_ngram() -> None:
    slower = SPEEDS | {"NGRAM, 4 tokens": 45.0}
    assert "EAGLE-3 after 19.9k beats NGRAM, 12 tokens" in ngram_lines(outcome(slower))[0]
    alike = SPEEDS | {"NGRAM, 4 tokens": 90.5}
    assert "cannot be told apart" in ngram_lines(outcome(alike, noise=0.2))[0]


def test_the_controller_is_compared_with_the_best_arm_that_has_its_draft_or_none(tmp_path: Path) -> None:
    lineup = with_controller(LINEUP, CHECKPOINTS, DraftSpec(), tmp_path)
    speeds = SPEEDS | {"EAGLE-3 after 19.9k": 120.0, "controller, fresh pod": 55.0}
    speeds |= {"controller, EAGLE-3 untrained": 121.0, "controller, EAGLE-3 after 19.9k": 132.0}
    fresh, untrained, trained = controller_lines(outcome(speeds, noise=0.0, lineup=lineup))[:3]
    assert "fresh pod is 0.50x [0.50, 0.50] as fast as the best single arm (NGRAM, 4 tokens)" in fresh
    assert fresh.endswith("1.38x [1.38, 1.38] as fast as off")
    assert "1.10x [1.10, 1.10] as fast as the best single arm (NGRAM, 4 tokens)" in untrained
    assert "1.10x [1.10, 1.10] as fast as the best single arm (EAGLE-3 after 19.9k)" in trained
    assert controller_lines(outcome(SPEEDS)) == []


def test_only_the_chosen_pods_of_the_controller_are_measured(tmp_path: Path) -> None:
    lineup = with_controller(LINEUP, CHECKPOINTS, DraftSpec(), tmp_path, (TRAINED,))
    assert (lineup.controlled, lineup.fresh) == (("controller, EAGLE-3 after 19.9k",), "")
    assert len(lineup.servers) == len(LINEUP.servers) + 1


def test_each_pod_of_the_controller_is_measured_with_each_scope_of_lookup(tmp_path: Path) -> None:
    scopes = (LookupScope.REQUEST, LookupScope.SPECULATOR)
    lineup = with_controller(LINEUP, CHECKPOINTS, DraftSpec(), tmp_path, (TRAINED,), scopes)
    names = [f"controller, EAGLE-3 after 19.9k, lookup {scope}" for scope in scopes]
    methods = [lineup.servers[arm.server] for arm in lineup.arms if arm.name in lineup.controlled]
    assert list(lineup.controlled) == names
    assert [method.spec.lookup for method in methods if isinstance(method, Eagle3)] == list(scopes)


def test_a_goal_is_met_only_where_the_whole_interval_says_so() -> None:
    fast, slow = goal_lines(outcome(SPEEDS | {"EAGLE-3 after 19.9k": 110.0})), goal_lines(outcome(SPEEDS))
    assert "goal 2.5x within 20000 answer tokens, concurrency 1: met" in fast[0]
    assert "concurrency 1: missed" in slow[0]
    assert "concurrency 4: met" in slow[1]
    noisy = goal_lines(outcome(SPEEDS | {"EAGLE-3 after 19.9k": 95.0}, noise=0.2))
    assert "undecided" in noisy[0]


def test_the_goals_do_not_apply_to_a_draft_that_learned_from_more_traffic() -> None:
    more = dataclasses.replace(CHECKPOINTS[1], record=dataclasses.replace(CHECKPOINTS[1].record, tokens=20_001))
    base = outcome(SPEEDS | {"EAGLE-3 after 20.0k": 90.0})
    lineup = lineup_of([CHECKPOINTS[0], more], (4, 12))
    renamed = tuple(dataclasses.replace(s, arm=s.arm.replace("19.9k", "20.0k")) for s in base.measured.samples)
    changed = dataclasses.replace(
        base,
        plan=dataclasses.replace(PLAN, arms=lineup.arms),
        lineup=lineup,
        training=dataclasses.replace(base.training, checkpoints=[CHECKPOINTS[0], more]),
        measured=dataclasses.replace(base.measured, samples=renamed),
    )
    assert all("not applicable" in text for text in goal_lines(changed))


def test_the_table_has_a_row_per_arm_and_concurrency() -> None:
    quiet = outcome(SPEEDS, noise=0.0)
    rows = speed_table(quiet).splitlines()
    assert len(rows) == 2 + 2 * len(LINEUP.arms)
    assert {row.count("|") for row in rows} == {8}
    assert rows[2] == "| 1 | off | 40.0 |  |  | 20.0 |  |"
    assert rows[6].startswith("| 1 | EAGLE-3 after 19.9k | 90.0 | 2.25x [")
    assert rows[6].endswith(" | 2.67 | 30.0 | 1.50 |")
    text = section(quiet)
    assert "160 prompts" in text
    assert "| EAGLE-3 untrained | 5 | 4 | 1 | 0 |" in text
    assert "live traffic: untrained until 1.4k: 1.00, version 2 until 19.9k: 2.71" in text


def test_a_ratio_is_paired_by_round() -> None:
    """A machine that is twice as slow in every other round does not change the ratio."""
    measured = outcome(SPEEDS, noise=0.0).measured
    uneven = tuple(
        dataclasses.replace(s, counts=dataclasses.replace(s.counts, seconds=s.counts.seconds * (1 + s.round % 2)))
        for s in measured.samples
    )
    ratio = dataclasses.replace(measured, samples=uneven).ratio("EAGLE-3 after 19.9k", "off", 1)
    assert ratio is not None
    assert ratio.low == pytest.approx(2.25) == ratio.high
    assert paired_ratio([], GateArm.CANDIDATE, GateArm.OFF, 1) is None


def test_without_verify_rounds_nothing_is_explained() -> None:
    assert (
        explain_difference(ArmSummary(1.0, None, 1.0), ArmSummary(1.0, 2.0, 1.0)) == "one of them had no verify rounds"
    )
