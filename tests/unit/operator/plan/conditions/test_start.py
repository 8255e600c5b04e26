"""A start goes on until a pod serves, and a start that goes wrong stalls with a Warning."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.conditions import Condition, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.inference_deployment import START_LIMIT
from aurora_operator.observe.observed import Observed, PodView, WorkloadView
from tests.unit.operator.worlds import NO_ROOM, NOW, made, observed, pod, spec

CRASH = {"failing": "sglang", "waiting": "CrashLoopBackOff", "crash": "sglang ended with exit code 137, OOMKilled"}
NO_IMAGE = {"failing": "agent", "waiting": "ImagePullBackOff"}
LIMIT = START_LIMIT
SECOND = timedelta(seconds=1)
NO_START = SpeculatorStatus(observed_generation=1)


def starting(name: str = "chat-a", **more: Any) -> PodView:
    """A pod that was created at ``NOW`` and loads its model."""
    return pod(name, 0, **{"ready": False, "agent": None, "created": NOW} | more)


def begun(*pods: PodView, **more: Any) -> Observed:
    """A new speculator, none of whose pods is ready."""
    workload = WorkloadView(current=True, replicas=len(pods), ready=0)
    return observed(
        **{"pods": pods, "deployment": workload, "spec": spec(serving={"replicas": max(len(pods), 1)})} | more
    )


def written(world: Observed, after: timedelta = timedelta(0)) -> SpeculatorStatus:
    """The stored status after a reconcile at ``NOW + after``."""
    return made(world, NOW + after).status or world.status


def stalled(world: Observed, after: timedelta = timedelta(0)) -> Condition:
    return next(c for c in written(world, after).conditions if c.type is ConditionType.STALLED)


def later(world: Observed, after: timedelta = timedelta(0), **changes: Any) -> Observed:
    """The world after ``changes``, when the status of ``world`` was written."""
    return replace(world, status=written(world, after), **changes)


def told(world: Observed, after: timedelta = timedelta(0)) -> list[tuple[str, bool]]:
    return [(note.reason, note.warning) for note in made(world, NOW + after).notes]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (CRASH, "kubectl -n team logs chat-a -c sglang --previous"),
        (
            {"failing": "sglang", "crash": "sglang ended with exit code 1"},
            "kubectl -n team logs chat-a -c sglang --previous",
        ),
        (NO_IMAGE, "kubectl -n team describe pod chat-a"),
    ],
    ids=["it waits for its restart", "it runs once more", "it never ran"],
)
def test_a_container_that_fails_stalls_the_start_at_once_with_the_next_command(
    failure: dict[str, str], words: str
) -> None:
    new = begun(starting())
    assert (stalled(new).reason, told(new)) == ("AsExpected", [])
    failing = later(new, pods=(starting(**failure),))
    conditions = {c.type: c for c in written(failing).conditions}
    assert conditions[ConditionType.STALLED].status.value == "True"
    assert words in conditions[ConditionType.STALLED].message
    assert (conditions[ConditionType.READY].status.value, conditions[ConditionType.READY].reason) == (
        "False",
        "StartFailed",
    )
    assert conditions[ConditionType.RECONCILING].status.value == "False"
    assert told(failing) == [("StartFailed", True)]
    assert told(later(failing)) == [], "it was told"


def test_a_start_that_recovers_goes_on_and_ends_with_a_pod_that_serves() -> None:
    recovered = later(begun(starting(**CRASH)), pods=(starting(),))
    assert (stalled(recovered).reason, told(recovered)) == ("AsExpected", [])
    serving = later(recovered, pods=observed().pods, deployment=observed().deployment)
    assert (written(serving).starting, told(serving)) == (False, [("Ready", False)])
    down = later(serving, pods=(starting(**CRASH),))
    assert (written(down).starting, stalled(down).reason) == (False, "StartFailed"), "pods have served"


def test_a_start_becomes_a_timeout_once_the_startup_probe_would_have_ended_the_engine() -> None:
    late = later(begun(starting(), starting("chat-b")))
    assert stalled(late, LIMIT).reason == "AsExpected"
    timeout = stalled(late, LIMIT + SECOND)
    assert (timeout.reason, timeout.message) == (
        "StartTimeout",
        "No pod has served for 65 minutes: 0 of 2 pods are ready",
    )
    assert told(late, LIMIT + SECOND) == [("StartTimeout", True)]
    known = replace(late, pods=(starting(**CRASH),))
    assert stalled(known, LIMIT + SECOND).reason == "StartFailed", "the cause is known"


def test_pods_that_are_replaced_again_and_again_do_not_restart_the_clock() -> None:
    """An evicted pod lasts for ten minutes, so no pod ever reaches the limit."""
    step, world = timedelta(minutes=10), begun(starting())
    for number in range(1, 7):
        world = later(world, step * (number - 1), pods=(starting(f"chat-{number}", created=NOW + step * number),))
    assert stalled(world, LIMIT).reason == "AsExpected"
    assert stalled(replace(world, pods=()), LIMIT + SECOND).reason == "StartTimeout", "the next pod does not exist yet"


def test_an_engine_that_served_and_starts_again_stalls_nothing() -> None:
    """Its pod is old, and its restarts count for the pod's whole life."""
    serving = later(later(begun(starting())), pods=observed().pods, deployment=observed().deployment)
    again = starting(created=NOW - 9 * LIMIT, failing="sglang", crash="sglang ended with exit code 1", restarts=3)
    assert stalled(later(serving, 9 * LIMIT, pods=(again,)), 9 * LIMIT).reason == "AsExpected"


def test_a_start_after_zero_replicas_begins_anew() -> None:
    zero = later(observed(), spec=spec(serving={"replicas": 0}), pods=())
    assert stalled(zero, LIMIT * 9).reason == "AsExpected"
    up = later(zero, LIMIT * 9, spec=spec(serving={"replicas": 1}), pods=(starting(created=NOW + LIMIT * 9),))
    assert stalled(later(up, LIMIT * 9), LIMIT * 10).reason == "AsExpected"
    assert stalled(later(up, LIMIT * 9), LIMIT * 10 + SECOND).reason == "StartTimeout"


def test_a_spec_that_was_never_usable_has_not_ended_the_start() -> None:
    assert not written(begun(starting(), status=NO_START)).starting, "a pod has served before"
    assert written(begun(starting())).starting


def test_a_timeout_says_what_the_pods_wait_for() -> None:
    world = begun(starting(scheduled=False, waiting="Unschedulable", scheduler_message=NO_ROOM))
    timeout = stalled(later(world), LIMIT + SECOND)
    assert timeout.reason == "StartTimeout"
    assert NO_ROOM in timeout.message


def test_a_quota_that_refuses_every_pod_is_told_at_once() -> None:
    refused = stalled(begun(deployment=WorkloadView(True, 0, 0, message="exceeded quota: gpus")))
    assert refused.reason == "StartFailed"
    assert "exceeded quota: gpus" in refused.message


def test_only_the_newest_pod_fails_a_start() -> None:
    old = starting("chat-old", **NO_IMAGE)
    assert stalled(begun(old, starting(created=NOW + LIMIT))).reason == "AsExpected"


FAILURES = st.sampled_from([{}, CRASH, NO_IMAGE])
PODS = st.builds(
    lambda name, ready, terminating, failure: starting(name, ready=ready, terminating=terminating, **failure),
    st.sampled_from(["chat-a", "chat-b"]),
    st.booleans(),
    st.booleans(),
    FAILURES,
)


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2]), st.lists(PODS, max_size=2, unique_by=lambda view: view.name)),
        min_size=1,
        max_size=6,
    )
)
def test_a_start_ends_with_the_first_pod_that_serves_and_is_never_ready_before(
    changes: list[tuple[int, list[PodView]]],
) -> None:
    """Over any changes of the pods. A speculator of which no pod has served for longer than the limit stalls."""
    world, served, clock, after = observed(), False, False, LIMIT
    for replicas, pods in changes:
        after += LIMIT + SECOND
        deployment = WorkloadView(current=True, replicas=replicas, ready=0)
        world = replace(world, spec=spec(serving={"replicas": replicas}), pods=tuple(pods), deployment=deployment)
        serving = any(view.serves for view in pods)
        served = serving or (served and replicas > 0)
        assert written(world, after).starting is not served
        assert serving or replicas == 0 or ready(world, after) == "False"
        if clock and not serving and replicas > 0:
            assert stalled(world, after).reason in ("StartFailed", "StartTimeout")
        clock = replicas > 0 and not serving
        world = later(world, after)


def ready(world: Observed, after: timedelta) -> str:
    return next(c.status.value for c in written(world, after).conditions if c.type is ConditionType.READY)
