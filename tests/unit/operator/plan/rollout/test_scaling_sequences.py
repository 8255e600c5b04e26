"""Whole sequences of rollout steps while an autoscaler scales up, scales down and scales to zero, in each phase.

The lines are those of ``test_step_sequences``. New pods are called c, d, and so on, and start during one reconcile.
Pod a is the canary.
"""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.status import RolloutPhase
from tests.unit.operator.plan.rollout.test_step_sequences import with_canary, with_promoted_version
from tests.unit.operator.service import Service, sequence


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


def joined(*parts: str) -> list[str]:
    return [line for part in parts for line in sequence(part)]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("idle", [CANARY_OF_TWO_OR_MORE, NEW_POD_LAST, WATCHED_TO_ITS_END]),
        ("canary", ["3 x Wait -> Judging", NEW_POD_LAST, WATCHED_TO_ITS_END]),
        ("rolling", ["Proceed -> Rolling; c=1", "Proceed -> Rolling; d=1", WATCHED_TO_ITS_END]),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"]),
        ("returning", [RETURN_OF_BOTH]),
        ("paused", [RESUMED, NEW_POD_LAST, WATCHED_TO_ITS_END]),
    ],
)
def test_a_pod_that_joins_in_any_phase_gets_the_version_last(phase: str, expected: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) + 1)
    assert go_on(service) == joined(*expected)
    assert {pod.version for pod in service.pods} == {service.active}


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("canary", ["Wait -> Judging", "2 x Wait -> Judging", NEW_POD_LAST]),
        ("rolling", ["Wait -> Rolling", "Proceed -> Rolling; c=1", "Proceed -> Rolling; d=1"]),
    ],
)
def test_a_roll_is_held_while_more_new_pods_than_allowed_start(phase: str, expected: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) + 2)
    last = service.pods[-1].name
    assert go_on(service) == joined(*expected, f"Proceed -> Rolling; {last}=1", WATCHED_TO_ITS_END)


def test_a_new_pod_that_starts_for_long_delays_no_roll() -> None:
    """It comes up with the version that was active when it started, and swaps to the promoted one then."""
    service = Service(2)
    assert service.reconcile_times(2) == sequence(CANARY_OF_TWO_OR_MORE)[:2]
    service.scale(3)
    (new,) = [pod for pod in service.pods if not pod.ready]
    new.starts = False
    assert service.reconcile_until_idle() == joined("Proceed -> Judging; a=1", "3 x Wait -> Judging", PROMOTED_WITHOUT)
    new.ready = True
    assert service.reconcile_times(2) == sequence("""
        Wait -> Idle; c=1
        Wait -> Idle
    """)


PROMOTED_WITHOUT = "Pass -> Rolling; b=1; CanaryPassed" + WATCHED_TO_ITS_END


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("idle", [CANARY_OF_TWO_OR_MORE, PROMOTED_WITHOUT]),
        ("canary", ["3 x Wait -> Judging", PROMOTED_WITHOUT]),
        ("rolling", ["Proceed -> Rolling; c=1", WATCHED_TO_ITS_END]),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"]),
        ("returning", [RETURN_OF_BOTH]),
        ("paused", [RESUMED, PROMOTED_WITHOUT]),
    ],
)
def test_pods_without_a_node_change_nothing_and_start_with_the_active_version_later(
    phase: str, expected: list[str]
) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) + 3, room=False)
    assert go_on(service) == joined(*expected), "as without these pods"
    service.add_nodes()
    assert service.reconcile_times(3) == sequence("3 x Wait -> Idle")
    assert {pod.version for pod in service.pods if pod.ready} == {service.active}
    assert len({pod.name for pod in service.pods if pod.ready}) == len(service.pods)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("idle", [ALONE.format(pod="b"), WATCHED_TO_ITS_END]),
        (
            "canary",
            ["Proceed -> Judging; b=1", "3 x Wait -> Judging", "Pass -> Rolling; CanaryPassed", WATCHED_TO_ITS_END],
        ),
        ("rolling", ["Proceed -> Rolling; c=1", WATCHED_TO_ITS_END]),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"]),
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
def test_another_pod_takes_the_place_of_a_canary_that_a_scale_down_removes(phase: str, expected: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) - 1, first="a")
    assert go_on(service) == joined(*expected)
    assert {pod.version for pod in service.pods} == {service.active}


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("idle", [ALONE.format(pod="a"), WATCHED_TO_ITS_END]),
        ("canary", ["3 x Wait -> Judging", "Pass -> Rolling; CanaryPassed", WATCHED_TO_ITS_END]),
        ("rolling", [WATCHED_TO_ITS_END]),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"]),
        ("returning", ["Wait -> Idle; a=0"]),
        ("paused", [RESUMED, "Pass -> Rolling; CanaryPassed", WATCHED_TO_ITS_END]),
    ],
)
def test_a_scale_down_of_other_pods_leaves_them_out(phase: str, expected: list[str]) -> None:
    service = in_phase(phase)
    service.scale(len(service.pods) - 1)
    assert go_on(service) == joined(*expected)
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
    ("phase", "expected", "rolls_again"),
    [
        ("idle", [], True),
        ("canary", STOPPED, True),
        ("rolling", STOPPED, True),
        ("watched", ["5 x Watch -> Judging", "Keep -> Idle"], False),
        ("returning", [], False),
        ("paused", STOPPED, True),
    ],
)
def test_a_scale_to_zero_ends_each_phase_without_blame(phase: str, expected: list[str], *, rolls_again: bool) -> None:
    service = in_phase(phase)
    rejected = set(service.rejected)
    service.scale(0)
    ended = joined(*expected)
    assert service.reconcile_times(len(ended)) == ended
    service.set_policy(paused=False)
    assert service.reconcile_times(5) == ["Wait -> Idle"] * 5, "nothing changes any more"
    assert service.rejected == rejected
    service.scale(1)
    (pod,) = service.pods
    again = joined("Wait -> Idle", ALONE.format(pod=pod.name), WATCHED_TO_ITS_END) if rolls_again else []
    assert service.reconcile_times(len(again)) == again
    assert service.reconcile_times(3) == sequence("3 x Wait -> Idle")
    assert {pod.version for pod in service.pods} == {service.active}
    assert service.rejected == rejected
