from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm, arms_within
from aurora_runtime.serving.speculation.estimates.cost_model import CostModel, ascending
from aurora_runtime.serving.speculation.estimates.size_ranges import range_text, size_range
from tests.bench.speculation.cost_tables import CostTable, Noise, cpu_milliseconds, gpu_milliseconds
from tests.example_count import example_count

ARMS = arms_within(draft_steps=7, lookup_steps=11)
TABLES = pytest.mark.parametrize("table", [cpu_milliseconds, gpu_milliseconds])


def estimate(model: CostModel, arm: Arm, batch_size: int) -> float:
    return model.milliseconds(batch_size)[ARMS.index(arm)]


@settings(max_examples=example_count(60), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ARMS), st.integers(1, 64), st.floats(1, 500)), max_size=40))
def test_estimates_are_positive_and_never_fall_with_steps_or_with_the_draft(
    times: list[tuple[Arm, int, float]],
) -> None:
    model = CostModel(ARMS)
    for arm, batch_size, milliseconds in times:
        model.learn(arm, batch_size, milliseconds)
    for batch_size in (1, 3, 16, 64):
        costs = dict(zip(ARMS, model.milliseconds(batch_size), strict=True))
        assert min(costs.values()) > 0
        for arm, cost in costs.items():
            for other, other_cost in costs.items():
                if arm.steps <= other.steps and arm.drafts <= other.drafts:
                    assert cost <= other_cost * (1 + 1e-9), (arm, other)


@TABLES
def test_ratios_between_arms_are_learned_under_noise_and_a_wandering_pace(table: CostTable) -> None:
    model, rng = CostModel(ARMS), random.Random(3)  # noqa: S311 - no secret
    noise = Noise(rng)
    for _ in range(1500):
        arm = rng.choice(ARMS)
        model.learn(arm, 4, noise.measured(table(arm, 4, 0)))
    for arm in ARMS:
        ratio = estimate(model, arm, 4) / estimate(model, OFF, 4)
        assert ratio == pytest.approx(table(arm, 4, 0) / table(OFF, 4, 0), rel=0.06)


@TABLES
def test_cells_that_were_never_timed_are_estimated_from_the_others(table: CostTable) -> None:
    model = CostModel(ARMS)
    for arm in (OFF, Arm(1, drafts=True), Arm(3, drafts=False), Arm(3, drafts=True)):
        for batch_size in (1, 4):
            for _ in range(5):
                model.learn(arm, batch_size, table(arm, batch_size, 0))
    for arm in (Arm(2, drafts=False), Arm(5, drafts=False), Arm(5, drafts=True)):
        for batch_size in (2, 4, 6):
            assert estimate(model, arm, batch_size) == pytest.approx(table(arm, batch_size, 0), rel=0.2)


def test_a_machine_that_becomes_slower_hardly_changes_the_ratio_to_an_arm_that_is_not_timed() -> None:
    model = CostModel(ARMS)
    fast, slow = OFF, Arm(5, drafts=False)
    for _ in range(60):
        model.learn(fast, 1, 20.0)
        model.learn(slow, 1, 24.0)
    for _ in range(60):
        model.learn(fast, 1, 30.0)
    assert estimate(model, slow, 1) / estimate(model, fast, 1) == pytest.approx(1.2, rel=0.08)
    assert estimate(model, fast, 1) * model.pace == pytest.approx(30.0, rel=0.04)


@pytest.mark.parametrize("first", [0, 1, 5])
def test_an_outlier_of_three_times_the_time_is_soon_forgotten(first: int) -> None:
    model, arm = CostModel(ARMS), Arm(3, drafts=False)
    for _ in range(8):
        model.learn(OFF, 1, 20.0)
    for i in range(8):
        model.learn(arm, 1, 66.0 if i == first else 22.0)
    assert estimate(model, arm, 1) / estimate(model, OFF, 1) == pytest.approx(1.1, rel=0.08)


def look_at(model: CostModel, arm: Arm, batch_size: int) -> bool:
    """Whether ``arm`` is due for a look."""
    return ARMS.index(arm) in model.looks(batch_size)


def test_a_slow_first_round_of_a_size_does_not_make_its_arm_dear_for_ever() -> None:
    """An arm that seems dear is not chosen again, so nothing would correct its time."""
    model, draft = CostModel(ARMS), Arm(2, drafts=True)
    for _ in range(3):
        model.learn(OFF, 1, 21.0)
        model.learn(Arm(1, drafts=True), 1, 22.0)
    model.learn(draft, 1, 60.0)
    for _ in range(40):
        model.learn(OFF, 1, 21.0)
        model.learn(Arm(1, drafts=True), 1, 22.0)
    assert estimate(model, draft, 1) < 1.25 * estimate(model, OFF, 1)
    for _ in range(8):
        model.learn(draft, 1, 60.0)
        model.learn(OFF, 1, 21.0)
    assert estimate(model, draft, 1) > 2 * estimate(model, OFF, 1), "a second slow round is no accident"


def test_looks_at_an_arm_that_is_dear_become_ever_rarer() -> None:
    """A busy neighbour made all times of the draft's arms four times as long, and nothing of lookup's."""
    model, lookup, looks = CostModel(ARMS), Arm(3, drafts=False), []
    for _ in range(20):
        model.learn(OFF, 1, 20.0)
        model.learn(lookup, 1, 23.0)
    for _ in range(4):
        for arm in (a for a in ARMS if a.drafts):
            model.learn(arm, 1, 100.0)
    draft = Arm(2, drafts=True)
    for i in range(4000):
        model.learn(lookup, 1, 23.0)
        if look_at(model, draft, 1):
            looks.append(i)
            model.learn(draft, 1, 100.0)  # the arm really is dear
            assert estimate(model, draft, 1) > 3 * estimate(model, OFF, 1), "one round a look"
    assert looks[0] < 100
    assert 5 <= len(looks) <= 7, "each look waits for twice as many rounds"
    while not look_at(model, draft, 1):
        model.learn(lookup, 1, 23.0)
    for _ in range(10):
        model.learn(draft, 1, 26.0)
    against_lookup = estimate(model, draft, 1) / estimate(model, lookup, 1)
    assert against_lookup == pytest.approx(26 / 23, rel=0.05), "and nothing for ever"


@pytest.mark.parametrize("others", [1, 2])
def test_an_arm_that_always_catches_up_is_no_arm_out_of_use(others: int) -> None:
    """Times with a catch-up teach the catch-up's time. They count as uses of the arm all the same."""
    model, draft = CostModel(ARMS), Arm(3, drafts=True)
    for _ in range(4):
        model.learn(OFF, 1, 20.0)
        model.learn(draft, 1, 44.0)
    for _ in range(300):
        for _ in range(others):
            model.learn(OFF, 1, 20.0)
        model.learn(draft, 1, 46.0, pending=2)
        assert not look_at(model, draft, 1)


def test_an_arm_that_seems_dear_is_corrected_although_each_of_its_rounds_has_a_catch_up() -> None:
    """A neighbour slowed the draft more than lookup, and went. Now lookup serves, and the draft is only explored."""
    model, lookup, draft = CostModel(ARMS), Arm(2, drafts=False), Arm(2, drafts=True)
    noise = Noise(random.Random(5))  # noqa: S311 - no secret
    for _ in range(300):
        model.learn(OFF, 4, noise.measured(50.0))
        model.learn(lookup, 4, noise.measured(65.0))
        model.learn(draft, 4, noise.measured(85.0))
        model.learn(draft, 4, noise.measured(91.0), pending=8)
    assert estimate(model, draft, 4) / estimate(model, lookup, 4) == pytest.approx(1.31, rel=0.04)
    for _ in range(25):
        for _ in range(30):
            model.learn(lookup, 4, noise.measured(53.0))
        model.learn(draft, 4, noise.measured(67.0), pending=8)
    assert estimate(model, draft, 4) / estimate(model, lookup, 4) == pytest.approx(61 / 53, rel=0.08)


def test_rounds_of_other_batch_sizes_do_not_age_a_cell() -> None:
    model, dear = CostModel(ARMS), Arm(3, drafts=False)
    for _ in range(20):
        model.learn(OFF, 4, 24.0)
        model.learn(dear, 4, 70.0)
    for _ in range(500):
        model.learn(OFF, 1, 20.0)
    assert not look_at(model, dear, 4)


def test_rounds_of_other_batch_sizes_do_not_make_the_times_of_off_old() -> None:
    model = CostModel(ARMS)
    assert model.off_age(4) == (0, 0)
    for _ in range(5):
        model.learn(OFF, 4, 24.0)
    for _ in range(500):
        model.learn(Arm(3, drafts=False), 1, 23.0)
    assert model.off_age(4) == (5, 0)
    for _ in range(7):
        model.learn(Arm(3, drafts=False), 4, 30.0)
    assert model.off_age(4) == (5, 7)
    assert model.off_age(1) == (0, 500)


def test_a_cell_that_is_due_for_a_look_does_not_make_deeper_arms_dear() -> None:
    """A chain of fewer steps cannot be slower, so its time is wrong."""
    model, short, deep = CostModel(ARMS), Arm(1, drafts=False), Arm(3, drafts=False)
    for _ in range(2):
        model.learn(OFF, 4, 24.0)
        model.learn(short, 4, 75.0)
    for _ in range(60):
        model.learn(deep, 4, 33.0)
    assert estimate(model, deep, 4) / estimate(model, OFF, 4) == pytest.approx(33 / 24, rel=0.08)


def test_the_catch_up_is_learned_and_does_not_make_the_arm_dear() -> None:
    model, arm = CostModel(ARMS), Arm(3, drafts=True)
    for _ in range(30):
        model.learn(OFF, 1, 20.0)
        model.learn(arm, 1, 26.0)
    for _ in range(30):
        model.learn(arm, 1, 26.0 + 0.5 + 0.02 * 200, pending=200)
        model.learn(OFF, 1, 20.0)
    assert estimate(model, arm, 1) / estimate(model, OFF, 1) == pytest.approx(1.3, rel=0.03)
    assert model.catch_up_milliseconds(200, 1) == pytest.approx(4.5, rel=0.25)


def test_a_round_that_caught_up_in_no_time_does_not_count_as_one_without_a_catch_up() -> None:
    """A time of off that was too long hides the catch-up. A later one must not seem to be all of what it is longer."""
    model, draft = CostModel(ARMS), Arm(2, drafts=True)
    for _ in range(4):
        model.learn(OFF, 1, 60.0)
    for _ in range(4):
        model.learn(draft, 1, 24.0, pending=4)
    assert not model._range(size_range(1)).is_known_caught_up(ARMS.index(draft))
    for _ in range(4):
        model.learn(draft, 1, 24.0)
    assert model._range(size_range(1)).is_known_caught_up(ARMS.index(draft))


@pytest.mark.parametrize("catch_up", [1.0, 6.0])
def test_an_arm_that_alternates_with_others_does_not_seem_dear_for_its_catch_ups(catch_up: float) -> None:
    """A short catch-up is a small part of a round, and every round that drafts has one."""
    model, draft, rng = CostModel(ARMS), Arm(2, drafts=True), random.Random(5)  # noqa: S311 - no secret
    for _ in range(6):
        model.learn(draft, 4, 32.0)
        model.learn(OFF, 4, 22.0)
    for _ in range(200):
        model.learn(OFF, 4, 22.0 * rng.gauss(1, 0.05))
        model.learn(draft, 4, (32.0 + catch_up) * rng.gauss(1, 0.05), pending=6)
    assert estimate(model, draft, 4) / estimate(model, OFF, 4) == pytest.approx(32 / 22, rel=0.03)
    assert model.catch_up_milliseconds(6, 4) / estimate(model, OFF, 4) == pytest.approx(catch_up / 22, abs=0.05)


@pytest.mark.parametrize("batch_size", [16, 64])
@TABLES
def test_the_first_round_of_the_draft_under_load_tells_its_time_and_its_catch_up_s(
    table: CostTable, batch_size: int
) -> None:
    """The prior is that of a small CPU, so a GPU's first round is several times as fast as expected."""
    model, draft, pending = CostModel(ARMS), Arm(1, drafts=True), 32 * batch_size
    for _ in range(4):
        model.learn(OFF, batch_size, table(OFF, batch_size, 0))
    off = estimate(model, OFF, batch_size)
    least = model.trial_milliseconds(batch_size, pending, {})[ARMS.index(draft)]
    took = table(draft, batch_size, pending)
    assert least - off < 2.5 * (took - off), "a trial must not seem far dearer than it is"
    model.learn(draft, batch_size, took, pending)
    expected = estimate(model, draft, batch_size) + model.catch_up_milliseconds(pending, batch_size)
    assert 0.8 * took < expected < 2 * took


def test_a_catch_up_counts_as_long_for_exploration_only_once_it_was_timed() -> None:
    model, draft = CostModel(ARMS), Arm(1, drafts=True)
    for _ in range(4):
        model.learn(OFF, 4, 22.0)
        model.learn(draft, 4, 28.0)
    expected, least = model.catch_up_milliseconds(400, 4), model.least_catch_up_milliseconds(400, 4)
    assert least < 0.25 * expected
    for _ in range(10):
        model.learn(draft, 4, 28.0 + expected, pending=400)
        model.learn(OFF, 4, 22.0)
    assert model.least_catch_up_milliseconds(400, 4) == pytest.approx(expected, rel=0.25)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_the_nearest_ascending_sequence_keeps_the_weighted_sum(pairs: list[tuple[float, float]]) -> None:
    values, weights = [v for v, _ in pairs], [w for _, w in pairs]
    result = ascending(values, weights)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(result))
    assert sum(a * w for a, w in zip(result, weights, strict=True)) == pytest.approx(
        sum(a * w for a, w in zip(values, weights, strict=True))
    )
    assert ascending(result, weights) == pytest.approx(result)


def test_ranges_of_batch_sizes_have_no_gaps_and_grow_with_the_size() -> None:
    numbers = [size_range(size) for size in range(1, 65)]
    assert numbers[:8] == [1, 2, 3, 4, 5, 5, 6, 6]
    assert all(b - a in (0, 1) for a, b in itertools.pairwise(numbers))


def test_the_name_of_a_range_holds_exactly_its_sizes() -> None:
    texts = [range_text(size) for size in range(1, 65)]
    assert [*dict.fromkeys(texts)] == [
        *("1", "2", "3", "4", "5-6", "7-8", "9-12", "13-16", "17-24", "25-32", "33-48", "49-64"),
    ]
    named = {text: set(range(int(text.split("-")[0]), int(text.split("-")[-1]) + 1)) for text in texts}
    assert all(size in named[range_text(size)] for size in range(1, 65))
    assert len({(size_range(size), range_text(size)) for size in range(1, 65)}) == len(named)
