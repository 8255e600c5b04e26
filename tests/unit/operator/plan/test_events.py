"""Events tell every new fault once, as a Warning if a person must correct it, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.act.event_recorder import _event
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_operator.plan import EventNote
from aurora_operator.plan.root_ownership import TAKING_OVER
from tests.unit.operator.worlds import NOW, OWNER, made, observed, pod, spec, status

NO_PODS: dict[str, Any] = {"pods": (), "deployment": WorkloadView(current=False, replicas=2, ready=0)}
DOWN: dict[str, Any] = {"pods": (pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=False))}
FAULTS: dict[str, dict[str, Any]] = {
    **{
        f"Storage{reason}": {"store": StoreView(reason=reason, error="what to do")}
        for reason in (
            *("SecretMissing", "SecretForbidden", "SecretIncomplete", "SigningKeysMissing", "StoreNotAllowed"),
            *("AddressRefused", "KeysRequired", "Unreachable", "ConditionalWritesUnsupported", "InvalidRecord"),
            *("RestoreRefused", "TakenOver"),
        )
    },
    "NameTaken": {"name_taken": ("Service chat",)},
    "InvalidSpec": {"spec_fault": "serving.template: no"},
    "ApplyRefused": {"apply_errors": ("quota",)},
    "PinRefused": {"spec": spec(serving={"replicas": 2}, rollout={"pin": 7})},
}
"""Faults that a person must correct: the reason of the Event, and the observation that shows the fault."""


def told(world: Observed) -> list[tuple[str, bool]]:
    """Reason and whether it is a Warning of each Event about Ready and its causes."""
    return [(note.reason, note.warning) for note in made(world).notes]


def later(before: Observed, **changes: Any) -> Observed:
    """The world after ``changes``, when the status of ``before`` was written."""
    return replace(before, status=status(before), **changes)


@pytest.mark.parametrize("reason", FAULTS)
def test_what_a_person_must_correct_is_one_warning_on_the_first_reconcile_already(reason: str) -> None:
    world = observed(**NO_PODS | FAULTS[reason])
    assert told(world) == [(reason, True)]
    assert told(later(world)) == [], "it was told"


@pytest.mark.parametrize("reason", FAULTS)
def test_a_second_fault_is_told_while_ready_is_still_false(reason: str) -> None:
    first = "StorageUnreachable" if reason == "NameTaken" else "NameTaken"
    world = later(observed(), **FAULTS[first])
    assert told(world) == [(first, True)]
    # The first fault is corrected, and the second one comes at the same time.
    neither = {"name_taken": (), "store": observed().store}
    second = later(world, **neither | FAULTS[reason])
    expected = [] if reason == first else [(reason, True)]
    assert told(second) == expected


def test_a_fault_behind_another_one_is_told_once_the_other_is_corrected() -> None:
    both = later(observed(), name_taken=("Service chat",), store=StoreView(reason="SecretMissing", error="create it"))
    assert told(both) == [("NameTaken", True)]
    assert told(later(both, name_taken=())) == [("StorageSecretMissing", True)]


def test_another_message_of_the_same_reason_posts_nothing() -> None:
    world = later(observed(), store=StoreView(reason="Unreachable", error="connection refused"))
    assert told(later(world, store=StoreView(reason="Unreachable", error="timed out"))) == []


def test_pods_that_start_are_no_fault_and_pods_that_end_are() -> None:
    new = observed(**NO_PODS)
    assert told(new) == [("PodsUpdating", False)]
    unready = later(new, **DOWN, deployment=WorkloadView(current=True, replicas=2, ready=0))
    assert told(unready) == [("PodsNotReady", False)], "it still starts"
    serving = later(unready, pods=observed().pods, deployment=observed().deployment)
    assert told(serving) == [("Ready", False)]
    lost = later(serving, store=StoreView(reason="Unreachable", error="timed out"))
    assert told(lost) == [("StorageUnreachable", True)]
    down = later(lost, **DOWN, store=serving.store)
    assert told(down) == [("PodsNotReady", True)]


def test_a_takeover_of_a_root_is_no_fault() -> None:
    taking = StoreView(reason=TAKING_OVER, error="the root is being taken over")
    assert told(observed(**NO_PODS, store=taking)) == [(f"Storage{TAKING_OVER}", False)]


@given(st.lists(st.tuples(st.sampled_from(["PodsNotReady", "PodsPending", "Scaling"]), st.text(max_size=20))))
def test_a_ready_that_flaps_between_reasons_posts_one_event_of_each_in_an_hour(flaps: list[tuple[str, str]]) -> None:
    names = {
        _event(EventNote(reason, message, once_per_reason=True), OWNER, NOW + timedelta(seconds=at))["metadata"]["name"]
        for at, (reason, message) in enumerate(flaps)
    }
    assert len(names) == len({reason for reason, _ in flaps})
    again = EventNote("Scaling", "", once_per_reason=True)
    warning = EventNote("Scaling", "", warning=True, once_per_reason=True)
    assert _event(again, OWNER, NOW)["metadata"] != _event(warning, OWNER, NOW)["metadata"], "a Warning is news"
    assert _event(again, OWNER, NOW)["metadata"] != _event(again, OWNER, NOW + timedelta(hours=1))["metadata"]
