"""Whole sequences of rollout steps, as a service of one to four pods goes through them.

A line is one reconcile, ten seconds after the one before: ``judgement -> next phase; swaps; channel; event``. Live
analysis settles for 10 s, judges every 10 s, needs two good judgements in a row and watches for 60 s. New pods are
called c, d, and so on, and start during one reconcile. Pod a is the canary.
"""

from __future__ import annotations

from typing import Any

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from tests.unit.operator.rolls import UNJUDGED
from tests.unit.operator.service import REFUSED, Service, sequence

CANARY_OF_TWO = """
    Start -> Judging; RolloutStarted
    Wait -> Judging
    Proceed -> Judging; a=1
"""
PROMOTION_OF_TWO = """
    3 x Wait -> Judging
    Pass -> Rolling; b=1; CanaryPassed
    Pass -> Judging; active 1; Promoted
"""
PEACEFUL_WATCH = """
    5 x Watch -> Judging
    Keep -> Idle
"""


def expected(*parts: str) -> list[str]:
    return [line for part in parts for line in sequence(part)]


def with_canary(pods: int = 2, **policy: Any) -> Service:
    """The canary has just been asked for version 1."""
    service = Service(pods, **policy)
    assert service.reconcile_times(3) == expected(CANARY_OF_TWO)
    return service


def with_promoted_version() -> Service:
    """Two pods, on which version 1 has just become active."""
    service = with_canary()
    assert service.reconcile_times(5) == expected(PROMOTION_OF_TWO)
    return service


def test_a_good_version_on_one_pod_is_compared_with_its_baseline() -> None:
    service = Service(1)
    assert service.reconcile_until_idle() == sequence("""
        Start -> Judging; RolloutStarted
        Wait -> Judging
        Proceed -> Judging; a=1
        3 x Wait -> Judging
        Pass -> Rolling; CanaryPassed
        Pass -> Judging; active 1; Promoted
        5 x Watch -> Judging
        Keep -> Idle
    """)


def test_a_good_version_on_two_pods() -> None:
    service = Service(2)
    assert service.reconcile_until_idle() == expected(CANARY_OF_TWO, PROMOTION_OF_TWO, PEACEFUL_WATCH)
    assert service.reconcile() == "Wait -> Idle"


def test_a_good_version_on_four_pods_is_swapped_pod_by_pod() -> None:
    service = with_canary(4)
    assert service.reconcile_until_idle() == sequence("""
        3 x Wait -> Judging
        Pass -> Rolling; b=1; CanaryPassed
        Proceed -> Rolling; c=1
        Proceed -> Rolling; d=1
        Pass -> Judging; active 1; Promoted
        5 x Watch -> Judging
        Keep -> Idle
    """)


def test_a_version_that_is_not_judged() -> None:
    service = Service(2, analysis=UNJUDGED)
    assert service.reconcile_until_idle() == sequence("""
        Start -> Judging; RolloutStarted
        Proceed -> Judging; a=1
        Pass -> Rolling; b=1; CanaryPassed
        Pass -> Idle; active 1; Promoted
    """)


def test_without_traffic_the_roll_waits_for_its_baseline() -> None:
    service = Service(2)
    service.traffic = False
    assert service.reconcile_times(60) == sequence("""
        Start -> Judging; RolloutStarted
        59 x Wait -> Judging
    """)


def test_when_the_traffic_ends_the_canary_waits_until_a_person_pins_its_version() -> None:
    service = with_canary()
    service.traffic = False
    assert service.reconcile_times(60) == sequence("60 x Wait -> Judging")
    service.people = {"pinned_version": 1, "pin_set": True}
    assert service.reconcile_times(2) == sequence("""
        Pin -> Idle; active 1; Pinned
        Wait -> Idle; b=1
    """)


def test_live_traffic_disagrees_in_the_canary() -> None:
    service = Service(2)
    service.acceptance_length = {1: 1.1}
    assert service.reconcile_until_idle() == expected(CANARY_OF_TWO) + sequence("""
        3 x Wait -> Judging
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0
    """)
    assert service.roll.last_judgement == "acceptance length 1.10 against 2.00"
    assert service.reconcile_times(10) == sequence("10 x Wait -> Idle"), "a rejected version is not tried again"


def test_live_traffic_disagrees_while_the_version_is_watched() -> None:
    service = with_promoted_version()
    service.acceptance_length = {1: 1.1}
    assert service.reconcile_until_idle() == sequence("""
        3 x Watch -> Judging
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0 b=0
    """)


def test_a_person_aborts_the_canary() -> None:
    service = with_canary()
    service.people = {"abort": 1}
    assert service.reconcile_times(5) == sequence("""
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0
        3 x Wait -> Idle
    """)


def test_a_person_aborts_the_active_version() -> None:
    service = with_promoted_version()
    assert service.reconcile_until_idle() == expected(PEACEFUL_WATCH)
    service.people = {"abort": 1}
    assert service.reconcile_times(5) == sequence("""
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0 b=0
        3 x Wait -> Idle
    """)


def test_a_paused_canary_is_judged_on_and_goes_on_when_the_pause_ends() -> None:
    service = with_canary()
    service.set_policy(paused=True)
    assert service.reconcile_times(3) == sequence("""
        Pause -> Judging; Paused
        2 x Pause -> Judging
    """)
    service.set_policy(paused=False)
    assert service.reconcile_until_idle() == sequence("""
        Pass -> Rolling; b=1; CanaryPassed
        Pass -> Judging; active 1; Promoted
        5 x Watch -> Judging
        Keep -> Idle
    """)


def test_a_pin_of_the_active_version_stops_the_roll() -> None:
    service = with_canary()
    service.people = {"pinned_version": 0, "pin_set": True}
    assert service.reconcile_times(5) == sequence("""
        Stop -> Idle; RolloutStopped
        Wait -> Idle; a=0
        3 x Wait -> Idle
    """)


def test_a_pin_of_the_rolled_version_makes_it_active_at_once() -> None:
    service = with_canary()
    service.people = {"pinned_version": 1, "pin_set": True}
    assert service.reconcile_times(4) == sequence("""
        Pin -> Idle; active 1; Pinned
        Wait -> Idle; b=1
        2 x Wait -> Idle
    """)


def test_a_pin_of_a_third_version_brings_all_pods_back_first() -> None:
    service = with_canary()
    service.people = {"pinned_version": 2, "pin_set": True}
    assert service.reconcile_times(6) == sequence("""
        Pin -> Idle; a=0
        Pin -> Idle; active 2; Pinned
        Wait -> Idle; a=2 b=2
        3 x Wait -> Idle
    """)


def test_an_engine_that_crashes_twice_in_the_canary_rejects_the_version() -> None:
    service = with_canary()
    crashes = []
    for _ in range(2):
        service["a"].crash()
        crashes.append(service.reconcile())
    assert crashes + service.reconcile_until_idle() == sequence("""
        Wait -> Judging
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0
    """)


def test_engines_that_crash_in_the_watch_return_to_the_previous_version() -> None:
    service = with_promoted_version()
    crashes = []
    for name in ("a", "b"):
        service[name].crash()
        crashes.append(service.reconcile())
    assert crashes + service.reconcile_until_idle() == sequence("""
        Watch -> Judging
        Reject -> Idle; active 0, reject 1; RolloutFailed
        Wait -> Idle; a=0 b=0
    """)


def test_a_pod_that_cannot_take_the_draft_rejects_the_version() -> None:
    service = Service(2)
    service.refuses = {"a"}
    assert service.reconcile_until_idle() == expected(CANARY_OF_TWO) + sequence("""
        Reject -> Idle; active 0, reject 1; RolloutFailed
    """)
    assert service.roll.message == f"pod a could not take version 1: {REFUSED}"


def test_a_roll_is_held_while_too_many_pods_are_not_ready_and_no_deadline_counts() -> None:
    service = with_canary(4)
    assert service.reconcile_times(4) == sequence("""
        3 x Wait -> Judging
        Pass -> Rolling; b=1; CanaryPassed
    """)
    service["c"].ready = service["d"].ready = False
    assert service.reconcile_times(60) == sequence("60 x Wait -> Rolling")
    service["c"].ready = service["d"].ready = True
    assert service.reconcile_until_idle() == sequence("""
        Proceed -> Rolling; c=1
        Proceed -> Rolling; d=1
        Pass -> Judging; active 1; Promoted
        5 x Watch -> Judging
        Keep -> Idle
    """)


def test_a_roll_starts_beside_one_pod_that_never_becomes_ready_but_not_beside_two() -> None:
    service = Service(4)
    service["b"].ready = service["c"].ready = False
    assert service.reconcile_times(3) == sequence("3 x Wait -> Idle")
    service["b"].ready = True
    assert service.reconcile() == "Start -> Judging; RolloutStarted"


def test_the_last_pod_that_serves_is_no_canary_while_another_is_not_ready() -> None:
    service = Service(2)
    service["b"].ready = False
    assert service.reconcile_times(3) == sequence("3 x Wait -> Idle")
    service["b"].ready = True
    assert service.reconcile() == "Start -> Judging; RolloutStarted"


def test_an_operator_that_dies_after_the_channel_records_the_promotion_later() -> None:
    service = with_canary()
    assert service.reconcile_times(4) == expected(PROMOTION_OF_TWO)[:-1]
    assert service.reconcile(dies_before="status") == "Pass -> Judging; active 1; Promoted"
    assert service.reconcile() == "Adopt -> Judging; Promoted"
    assert service.reconcile_until_idle() == expected(PEACEFUL_WATCH)


def test_an_operator_that_dies_after_the_channel_records_the_rejection_later() -> None:
    service = with_canary()
    service.people = {"abort": 1}
    assert service.reconcile(dies_before="status") == "Reject -> Idle; active 0, reject 1; RolloutFailed"
    assert service.reconcile_until_idle() == sequence("""
        Adopt -> Idle; RolloutFailed
        Wait -> Idle; a=0
    """)


@pytest.mark.parametrize(("phase", "pin"), [("canary", 1), ("rolling", 1), ("watching", 0), ("watching", 2)])
def test_an_operator_that_dies_after_the_channel_records_the_pin_tells_of_no_other_decision(
    phase: str, pin: int
) -> None:
    """A pin rejects nothing, and promotes nothing that a watch would judge."""
    service = with_promoted_version() if phase == "watching" else with_canary()
    if phase == "rolling":
        service.reconcile_times(4)
    service.people = {"pinned_version": pin, "pin_set": True}
    assert service.reconcile(dies_before="status") == f"Pin -> Idle; active {pin}; Pinned"
    assert service.reconcile() == "Adopt -> Idle; Pinned"
    assert service.roll.message == f"version {pin} is pinned"
    service.reconcile_times(3)
    assert {pod.version for pod in service.pods} == {pin}
    assert (service.rejected, service.roll.phase) == (set(), RolloutPhase.IDLE)


@pytest.mark.parametrize("dies_before", ["channel", "status", "swaps"])
@pytest.mark.parametrize("reconciles_before", range(10))
def test_an_operator_that_dies_in_any_reconcile_comes_to_the_same_end(reconciles_before: int, dies_before: str) -> None:
    service = Service(2)
    service.reconcile_times(reconciles_before)
    service.reconcile(dies_before=dies_before)
    service.reconcile_until_idle()
    assert [pod.version for pod in service.pods] == [1, 1]
    assert (service.active, service.previous, service.rejected) == (1, 0, set())
    assert service.epoch == 2, "the channel was advanced once"


@pytest.mark.parametrize("pods", [1, 2, 4])
@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("kind", ["good", "bad", "crashes", "refused"])
def test_no_roll_goes_on_forever(pods: int, *, judged: bool, kind: str) -> None:
    service = Service(pods) if judged else Service(pods, analysis=UNJUDGED)
    service.acceptance_length = {1: 1.1} if kind == "bad" else {}
    service.refuses = {"a"} if kind == "refused" else set()
    count = 0
    while count == 0 or service.roll.phase is not RolloutPhase.IDLE or service.has_strays:
        service.reconcile()
        for pod in service.pods:
            if kind == "crashes" and pod.version == 1:
                pod.crash()
        count += 1
        assert count <= 30, f"still {service.roll.phase}: {service.roll.message}"
    ends_well = kind == "good" or (kind == "bad" and not judged)
    assert service.active == int(ends_well)
    assert {pod.version for pod in service.pods} == {service.active}
    assert service.reconcile_times(10) == sequence("10 x Wait -> Idle"), "nothing is left to do"


# an autoscaler --------------------------------------------------------------------------------------------------------


def rolling() -> Service:
    """The canary of three pods passed, and pod b was just asked."""
    service = with_canary(3)
    while service.roll.phase is RolloutPhase.JUDGING:
        service.reconcile()
    return service


def returning() -> Service:
    """Two pods are about to return from version 1, which a person aborted."""
    service = with_promoted_version()
    service.people = {"abort": 1}
    service.reconcile()
    service.people = {}
    return service


def paused() -> Service:
    """A person has paused the roll during its canary."""
    service = with_canary()
    service.set_policy(paused=True)
    service.reconcile()
    return service


def in_phase(phase: str) -> Service:
    makers = {
        "idle": lambda: Service(2),
        "canary": with_canary,
        "rolling": rolling,
        "watched": with_promoted_version,
        "returning": returning,
        "paused": paused,
    }
    return makers[phase]()


def go_on(service: Service) -> list[str]:
    """Reconcile until the service is at rest. A pause ends after two reconciles."""
    lines = [service.reconcile()]
    if service.policy.paused:
        lines.append(service.reconcile())
        service.set_policy(paused=False)
    lines += [service.reconcile()] if lines[-1] == "Wait -> Idle" else []
    while service.roll.phase is not RolloutPhase.IDLE or service.has_strays:
        lines.append(service.reconcile())
        assert len(lines) <= 60, f"still under way: {service.roll.phase}, {service.roll.message}"
    return lines


CANARY_OF_TWO_OR_MORE = """
    Start -> Judging; RolloutStarted
    Wait -> Judging
    Proceed -> Judging; a=1
    3 x Wait -> Judging
"""
WATCHED_TO_ITS_END = """
    Pass -> Judging; active 1; Promoted
    5 x Watch -> Judging
    Keep -> Idle
"""
NEW_POD_LAST = """
    Pass -> Rolling; b=1; CanaryPassed
    Proceed -> Rolling; c=1
"""
ALONE = """
    Start -> Judging; RolloutStarted
    Wait -> Judging
    Proceed -> Judging; {pod}=1
    3 x Wait -> Judging
    Pass -> Rolling; CanaryPassed
"""
RESUMED = """
    2 x Pause -> Judging
"""
RETURN_OF_BOTH = """
    Wait -> Idle; a=0 b=0
"""


@pytest.mark.parametrize(
    ("phase", "lines"),
    [
        ("idle", [CANARY_OF_TWO_OR_MORE, NEW_POD_LAST, WATCHED_TO_ITS_END]),
        ("canary", ["3 x Wait -> Judging", NEW_POD_LAST, WATCHED_TO_ITS_END]),
        ("rolling", ["Proceed -> Rolling; c=1", "Proceed -> Rolling; d=1", WATCHED_TO_ITS_END]),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"]),
        ("returning", [RETURN_OF_BOTH]),
        ("paused", [RESUMED, NEW_POD_LAST, WATCHED_TO_ITS_END]),
    ],
)
def test_a_pod_that_joins_in_any_phase_gets_the_version_last(phase: str, lines: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) + 1)
    assert go_on(service) == expected(*lines)
    assert {pod.version for pod in service.pods} == {service.active}


@pytest.mark.parametrize(
    ("phase", "lines"),
    [
        (
            "canary",
            ["Proceed -> Judging; b=1", "3 x Wait -> Judging", "Pass -> Rolling; CanaryPassed", WATCHED_TO_ITS_END],
        ),
        ("returning", ["Wait -> Idle; b=0"]),
        (
            "paused",
            [
                RESUMED,
                "Proceed -> Judging; b=1",
                "2 x Wait -> Judging",
                "Pass -> Rolling; CanaryPassed",
                WATCHED_TO_ITS_END,
            ],
        ),
    ],
)
def test_another_pod_takes_the_place_of_a_canary_that_a_scale_down_removes(phase: str, lines: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) - 1, first="a")
    assert go_on(service) == expected(*lines)
    assert {pod.version for pod in service.pods} == {service.active}


def test_a_scale_down_below_the_canary_makes_all_pods_the_canary() -> None:
    service = Service(4, canary=3, max_swapping=3)
    service.scale(2)
    assert go_on(service) == sequence("""
        Start -> Judging; RolloutStarted
        Wait -> Judging
        Proceed -> Judging; a=1 b=1
        3 x Wait -> Judging
        Pass -> Rolling; CanaryPassed
        Pass -> Judging; active 1; Promoted
        5 x Watch -> Judging
        Keep -> Idle
    """)


STOPPED = ["Stop -> Idle; RolloutStopped"]


@pytest.mark.parametrize(
    ("phase", "lines", "rolls_again"),
    [
        ("idle", [], True),
        ("canary", STOPPED, True),
        ("rolling", STOPPED, True),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"], False),
        ("returning", [], False),
        ("paused", STOPPED, True),
    ],
)
def test_a_scale_to_zero_ends_each_phase_without_blame(phase: str, lines: list[str], *, rolls_again: bool) -> None:
    service = in_phase(phase)
    rejected = set(service.rejected)
    service.scale(0)
    ended = expected(*lines)
    assert service.reconcile_times(len(ended)) == ended
    service.set_policy(paused=False)
    assert service.reconcile_times(5) == ["Wait -> Idle"] * 5, "nothing changes any more"
    assert service.rejected == rejected
    service.scale(1)
    (pod,) = service.pods
    again = expected("Wait -> Idle", ALONE.format(pod=pod.name), WATCHED_TO_ITS_END) if rolls_again else []
    assert service.reconcile_times(len(again)) == again
    assert service.reconcile_times(3) == sequence("3 x Wait -> Idle")
    assert {pod.version for pod in service.pods} == {service.active}
    assert service.rejected == rejected
