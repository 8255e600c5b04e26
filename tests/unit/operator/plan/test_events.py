"""Events tell every new fault once, as a Warning if a person must correct it, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.act.custom_resource import EventRecorder
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_operator.plan import EventNote
from tests.unit.operator.worlds import (
    OWNER,
    made,
    observed,
    pod,
    spec,
    status,
    waiting_pod,
)

NO_PODS: dict[str, Any] = {"pods": (), "deployment": WorkloadView(current=False, replicas=2, ready=0)}
DOWN: dict[str, Any] = {"pods": (pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=False))}
FAULTS: dict[str, dict[str, Any]] = {
    **{
        f"Storage{reason}": {"store": StoreView(reason=reason, error="what to do")}
        for reason in (
            *("SecretMissing", "SecretForbidden", "SecretIncomplete", "SigningKeysMissing", "StoreNotAllowed"),
            *("AddressRefused", "KeysRequired", "Unreachable", "ConditionalWritesUnsupported", "InvalidRecord"),
            *("PathRefused", "TakenOver"),
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


def test_a_fault_behind_another_one_is_told_once_the_other_is_corrected() -> None:
    both = later(observed(), name_taken=("Service chat",), store=StoreView(reason="SecretMissing", error="create it"))
    assert told(both) == [("NameTaken", True)]
    assert told(later(both, name_taken=())) == [("StorageSecretMissing", True)]


def test_another_message_of_the_same_reason_posts_nothing() -> None:
    world = later(observed(), store=StoreView(reason="Unreachable", error="connection refused"))
    assert told(later(world, store=StoreView(reason="Unreachable", error="timed out"))) == []


def test_pods_that_start_are_no_fault_and_pods_that_end_are() -> None:
    new = observed(**NO_PODS)
    assert told(new) == []
    serving = later(new, pods=observed().pods, deployment=observed().deployment)
    assert told(serving) == [("Ready", False)]
    lost = later(serving, store=StoreView(reason="Unreachable", error="timed out"))
    assert told(lost) == [("StorageUnreachable", True)]
    down = later(lost, **DOWN, store=serving.store)
    assert told(down) == [("PodsNotReady", True)]


class Posts:
    """The Events that are posted, in virtual time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.reasons: list[str] = []
        self._recorder = EventRecorder(self._post, lambda: self.seconds)

    def post(self, *notes: EventNote, generation: int = OWNER.generation) -> int:
        """Post ``notes`` and return how many Events they became."""
        before = len(self.reasons)
        for note in notes:
            self._recorder.post(note, replace(OWNER, generation=generation))
        return len(self.reasons) - before

    def _post(self, _: object, *, type: str, reason: str, message: str) -> None:  # noqa: A002 - kopf's name
        assert message
        self.reasons.append(f"{type} {reason}")


FLAPS: dict[str, dict[str, Any]] = {
    "serves": {},
    "half of it serves": {"pods": (pod("chat-a", 0), pod("chat-b", 0, ready=False))},
    "no pod serves": DOWN,
    "no room": {"pods": (waiting_pod("chat-a"), waiting_pod("chat-b"))},
    **FAULTS,
}
"""States between which a speculator may flap. Each message may hold a figure, which is another one each time."""


def flap(state: str, figure: int) -> dict[str, Any]:
    changes = dict(FLAPS[state])
    if "store" in changes:
        changes["store"] = replace(changes["store"], error=f"no answer within {figure} ms")
    if "apply_errors" in changes:
        changes["apply_errors"] = (f"exceeded quota, used {figure}",)
    if "pods" in changes:
        changes["deployment"] = WorkloadView(current=True, replicas=2, ready=figure % 2)
    return changes


@given(st.lists(st.tuples(st.sampled_from(sorted(FLAPS)), st.integers(0, 1000)), max_size=40))
def test_conditions_that_flap_post_each_reason_once_in_ten_minutes_whatever_their_messages_say(
    flaps: list[tuple[str, int]],
) -> None:
    world, posts, kinds = later(observed()), Posts(), set[tuple[str, bool]]()
    for second, (state, figure) in enumerate(flaps):
        world = replace(observed(), status=world.status, **flap(state, figure))
        decided = made(world)
        posts.seconds = second
        posts.post(*decided.notes)
        kinds |= {(note.reason, note.warning) for note in decided.notes}
        world = replace(world, status=decided.status or world.status)
    assert len(posts.reasons) == len(kinds)


def test_a_state_that_comes_back_in_another_period_is_told_again_and_so_is_one_after_an_edit() -> None:
    note, posts = EventNote("PodsNotReady", "1 of 2 pods are ready", about_condition=True), Posts()
    assert posts.post(note, replace(note, message="0 of 2 pods are ready")) == 1
    assert posts.post(replace(note, warning=True)) == 1, "a Warning is news"
    assert posts.post(note, generation=2) == 1
    posts.seconds = 600
    assert posts.post(note) == 1


def test_an_event_about_a_decision_repeats_after_an_hour_and_with_another_message() -> None:
    note, posts = EventNote("ValidationFailed", "too few prompts"), Posts()
    assert posts.post(note, note, replace(note, message="the engine crashed")) == 2
    posts.seconds = 3599
    assert posts.post(note) == 0
    posts.seconds = 3600
    assert posts.post(note) == 1
