"""When the store is read: seldom at rest, at once when something is expected, with backoff after faults."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.store.store_schedule import (
    MAX_EXPECTING_SECONDS,
    MAX_RETRY_SECONDS,
    MAX_RETRY_SECONDS_UNTIL_MENDED,
    MENDED_BY_A_PERSON,
    SELDOM_EXPECTING_SECONDS,
    ReadSchedule,
    ReadScope,
    StoreNeeds,
    Urgency,
)
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import NOW, lineage, store

LATER = NOW + timedelta(hours=1)
AT_REST = StoreNeeds(intent=1)
DOWN = StoreView(reason="Unreachable", error="no route")


def shortest(low: float, high: float) -> float:
    return low


def trainer(phase: TrainerPhase, step: int = 1) -> TrainerStatus:
    return TrainerStatus(phase=phase, step=step, shards=1, trained_tokens=1, updated=NOW)


def read_once(schedule: ReadSchedule, now: float, needs: StoreNeeds, view: StoreView) -> ReadScope:
    """One view: the scope that is due, recorded as read."""
    scope = schedule.scope(now, needs)
    if scope:
        schedule.record(now, needs, scope, view)
    return scope


def opened(view: StoreView) -> ReadSchedule:
    """A schedule that has read everything at time 0."""
    schedule = ReadSchedule(shortest)
    assert read_once(schedule, 0, AT_REST, view) is ReadScope.ALL
    return schedule


@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=400))
def test_a_speculator_at_rest_costs_at_most_two_requests_a_minute(pauses: list[float]) -> None:
    view = store(0, trainer=trainer(TrainerPhase.WAITING_FOR_TRACES))
    schedule, now, requests = opened(view), 0.0, list[float]()
    for pause in pauses:
        now += pause
        scope = read_once(schedule, now, AT_REST, view)
        assert len(scope) <= 2
        requests += [now] * len(scope)
    for start in requests:
        assert sum(start <= time < start + 60 for time in requests) <= 2


def test_at_rest_registry_trainer_and_channel_are_all_looked_at_within_minutes() -> None:
    view, seen = store(0), ReadScope.NONE
    schedule = opened(view)
    for second in range(1, 300):
        seen |= read_once(schedule, second, AT_REST, view)
    assert seen == ReadScope.REGISTRY | ReadScope.TRAINER | ReadScope.CHANNEL


def test_while_the_trainer_learns_a_candidate_is_looked_for_more_often() -> None:
    view = store(0, trainer=trainer(TrainerPhase.TRAINING))
    schedule = opened(view)
    scopes = [read_once(schedule, second, AT_REST, view) for second in range(1, 61)]
    assert sum(ReadScope.REGISTRY in scope for scope in scopes) == 3


def test_a_trainer_that_waits_for_traces_at_each_read_but_made_steps_in_between_learns() -> None:
    schedule = opened(store(0, trainer=trainer(TrainerPhase.WAITING_FOR_TRACES)))
    reads = []
    for second in range(1, 227):
        view = store(0, trainer=trainer(TrainerPhase.WAITING_FOR_TRACES, step=min(second, 80)))
        reads += [second] if read_once(schedule, second, AT_REST, view) else []
    assert reads == [61, 76, 91, 106, 121, 136, 151, 166], "the read at 91 sees the last step"


def test_everything_is_read_at_once_when_a_person_asks_for_something() -> None:
    schedule = opened(store(0))
    assert schedule.scope(1, AT_REST) is ReadScope.NONE
    assert schedule.scope(1, replace(AT_REST, intent=2)) is ReadScope.ALL


def test_everything_is_read_at_once_when_a_measurement_ended_and_only_once() -> None:
    """Evidence is written before its Job ends. Without it the candidate fails, or waits for the end of a roll."""
    measuring = StoreNeeds(intent=1, measurement=(1, 1))
    schedule = opened(store(0, 1))
    assert schedule.scope(1, measuring) is ReadScope.NONE
    ended = replace(measuring, measured=True)
    assert read_once(schedule, 1, ended, store(0, 1)) is ReadScope.ALL
    assert [read_once(schedule, second, ended, store(0, 1)) for second in (1.1, 15, 30)] == [ReadScope.NONE] * 3
    again = replace(ended, measurement=(1, 2))
    assert read_once(schedule, 31, again, store(0, 1)) is ReadScope.ALL
    assert read_once(schedule, 32, replace(again, measurement=(1, 3), measured=False), store(0, 1)) is ReadScope.NONE


def test_everything_is_read_again_when_the_read_after_the_end_of_a_measurement_failed() -> None:
    ended = StoreNeeds(intent=1, measurement=(1, 1), measured=True)
    schedule = ReadSchedule(shortest)
    schedule.record(0, AT_REST, ReadScope.ALL, store(0, 1))
    assert read_once(schedule, 1, ended, DOWN) is ReadScope.ALL
    assert read_once(schedule, 30, ended, store(0, 1)) is ReadScope.ALL
    assert read_once(schedule, 31, ended, store(0, 1)) is ReadScope.NONE


def test_a_roll_looks_at_the_channel_at_each_step_and_ever_more_rarely_while_it_waits() -> None:
    view = store(0, 1)
    schedule = opened(view)
    rolling = replace(AT_REST, urgency=Urgency.ROLLING, step=1)
    looked = [second for second in range(1, 3600) if ReadScope.CHANNEL in read_once(schedule, second, rolling, view)]
    assert looked[:5] == [1, 3, 7, 15, 31]
    assert len(looked) <= 6 + 3600 / 180, "as at rest"
    stepped = replace(rolling, step=2)
    assert ReadScope.CHANNEL in read_once(schedule, 3600, stepped, view)
    assert [ReadScope.CHANNEL in read_once(schedule, 3600 + second, stepped, view) for second in (1, 2)] == [
        False,
        True,
    ]


def test_a_trainer_whose_record_stays_as_it_is_does_not_learn() -> None:
    """It was killed, or its node is lost. Its record says Training for ever."""
    view = store(0, trainer=trainer(TrainerPhase.TRAINING))
    schedule = opened(view)
    reads = [second for second in range(1, 3600) if read_once(schedule, second, AT_REST, view)]
    assert len([second for second in reads if second <= 300]) == 20
    assert len([second for second in reads if second > 400]) <= 3200 / 60
    resumed = replace(view, trainer=trainer(TrainerPhase.TRAINING).model_copy(update={"updated": LATER}))
    again = [second for second in range(3600, 3800) if read_once(schedule, second, AT_REST, resumed)]
    assert again[2] - again[1] == 15


def test_a_fault_that_a_person_must_mend_is_looked_at_every_few_minutes() -> None:
    for reason in MENDED_BY_A_PERSON:
        schedule, reads = opened(store(0)), list[int]()
        view = StoreView(reason=reason, error="a record is wrong")
        schedule.record(0, AT_REST, ReadScope.ALL, view)
        reads = [second for second in range(1, 7200) if read_once(schedule, second, AT_REST, view)]
        assert reads[0] == 1
        assert min(later - earlier for earlier, later in pairwise(reads[-10:])) >= MAX_RETRY_SECONDS_UNTIL_MENDED / 2
        assert schedule.scope(7200, replace(AT_REST, intent=2)) is ReadScope.ALL, "a person does not wait"


def test_lost_records_that_nobody_puts_back_cost_two_requests_a_minute() -> None:
    lost = StoreView(lineage=lineage())
    schedule, scopes = opened(lost), dict[int, ReadScope]()
    scopes = {second: read_once(schedule, second, AT_REST, lost) for second in range(1, 6 * 3600)}
    late = [scope for second, scope in scopes.items() if second > 3600 and scope]
    absent_registrations = 2 * late.count(ReadScope.ALL)
    assert ReadScope.ALL in late, "a person may put records back in any order"
    assert sum(map(len, late)) + absent_registrations <= 2 * 5 * 60 * 2, "with the shortest pauses; half with the mean"


def test_the_first_records_are_expected_with_a_growing_interval() -> None:
    nothing, looked = StoreView(), ReadScope.LINEAGE | ReadScope.TRAINER
    schedule = opened(nothing)
    scopes = {second: read_once(schedule, second, AT_REST, nothing) for second in range(1, 3601)}
    reads = [second for second, scope in scopes.items() if scope]
    assert {scopes[second] for second in reads} == {looked}
    pauses = [later - earlier for earlier, later in pairwise(reads)]
    assert reads[0] <= 2
    assert max(pauses[:30]) <= MAX_EXPECTING_SECONDS
    assert min(pauses[-5:]) >= SELDOM_EXPECTING_SECONDS / 2, "two requests a minute when no trainer ever comes"
    created = StoreView(lineage=lineage())
    assert read_once(schedule, 3600 + SELDOM_EXPECTING_SECONDS, AT_REST, created) == looked
    assert read_once(schedule, 3602 + SELDOM_EXPECTING_SECONDS, AT_REST, store(0)) is ReadScope.ALL
    assert schedule.scope(3604 + SELDOM_EXPECTING_SECONDS, AT_REST) is ReadScope.NONE


def test_a_root_whose_registry_is_still_being_copied_is_expected() -> None:
    copied = store(0, active=5)
    schedule = opened(copied)
    assert read_once(schedule, 2, AT_REST, copied) is ReadScope.ALL, "also versions that were missing are looked for"
    assert schedule.seconds_until_due(2) <= MAX_EXPECTING_SECONDS


def test_faults_are_retried_with_backoff_and_a_person_does_not_wait_for_it() -> None:
    schedule, now, retries = opened(store(0)), 100.0, list[float]()
    schedule.record(now, AT_REST, ReadScope.ALL, DOWN)
    while now < 400:
        now += 0.5
        if read_once(schedule, now, AT_REST, DOWN):
            retries.append(now)
    pauses = [later - earlier for earlier, later in pairwise(retries)]
    assert retries[0] <= 102
    assert max(pauses) <= MAX_RETRY_SECONDS
    assert min(pauses[5:]) >= MAX_RETRY_SECONDS / 2
    assert schedule.scope(now, replace(AT_REST, intent=2)) is ReadScope.ALL
    assert schedule.seconds_until_due(now) <= MAX_RETRY_SECONDS


def test_after_a_reset_everything_is_read() -> None:
    schedule = opened(store(0))
    schedule.reset()
    assert schedule.scope(0.1, AT_REST) is ReadScope.ALL
    assert schedule.seconds_until_due(0.1) == 0
