"""Available says how a start goes, and a start that goes wrong ends in a Warning."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.pod_timing import MIN_START_SECONDS
from aurora_operator.observe.observed import (
    RECOVERED_AFTER,
    ContainerFailure,
    DeployedTemplate,
    Observed,
    PodView,
    ReplacedPod,
    WorkloadView,
)
from tests.example_count import example_count
from tests.unit.operator.worlds import NO_ROOM, NOW, made, observed, pod, spec, store

CRASH = ContainerFailure("sglang", waiting="CrashLoopBackOff", ending="exit code 137, OOMKilled")
NO_IMAGE = ContainerFailure("agent", waiting="ImagePullBackOff")
DEPLOYED = DeployedTemplate({"spec": {}}, whole=False)
LIMIT = timedelta(seconds=MIN_START_SECONDS)
NEVER_SERVED = ("Starting", "StartFailed", "StartTimeout", "ScaledToZero")


def starting(name: str = "chat-a", **more: Any) -> PodView:
    """A pod that was created at ``NOW`` and loads its model."""
    return pod(name, 0, **{"ready": False, "agent": None, "created": NOW, "template_hash": "new"} | more)


def begun(*pods: PodView, **more: Any) -> Observed:
    """A new speculator, none of whose pods is ready."""
    workload = WorkloadView(current=True, replicas=len(pods), ready=0)
    return observed(
        **{"pods": pods, "deployment": workload, "spec": spec(serving={"replicas": max(len(pods), 1)})} | more
    )


def written(world: Observed, after: timedelta) -> SpeculatorStatus:
    """The stored status after a reconcile at ``NOW + after``."""
    return made(world, NOW + after).status or world.status


def found(
    world: Observed, after: timedelta = timedelta(0), type_: ConditionType = ConditionType.AVAILABLE
) -> Condition:
    return next(c for c in written(world, after).conditions if c.type is type_)


def later(world: Observed, after: timedelta = timedelta(0), **changes: Any) -> Observed:
    """The world after ``changes``, when the status of ``world`` was written."""
    return replace(world, status=written(world, after), **changes)


def told(world: Observed, after: timedelta = timedelta(0)) -> list[tuple[str, bool]]:
    return [(note.reason, note.warning) for note in made(world, NOW + after).notes]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        pytest.param(
            CRASH,
            "0 of 1 pods serve clients. Container sglang of pod chat-a ended (CrashLoopBackOff, exit code 137,"
            " OOMKilled), and no pod has served clients yet. Its log says why:"
            " `kubectl -n team logs chat-a -c sglang --previous`",
            id="it waits for its restart",
        ),
        pytest.param(
            ContainerFailure("sglang", ending="exit code 1"),
            "0 of 1 pods serve clients. Container sglang of pod chat-a ended (exit code 1), and no pod has served"
            " clients yet. Its log says why: `kubectl -n team logs chat-a -c sglang --previous`",
            id="it runs once more",
        ),
        pytest.param(
            NO_IMAGE,
            "0 of 1 pods serve clients. Container agent of pod chat-a cannot start (ImagePullBackOff)."
            " Its events say why: `kubectl -n team describe pod chat-a`",
            id="it never ran",
        ),
    ],
)
def test_a_container_that_fails_is_a_warning_at_once_which_names_it_and_the_next_command(
    failure: ContainerFailure, message: str
) -> None:
    new = begun(starting())
    assert (found(new).reason, told(new)) == ("Starting", [("PodsNotReady", False)])
    failing = later(new, pods=(starting(failure=failure),))
    for type_ in (ConditionType.AVAILABLE, ConditionType.READY):
        condition = found(failing, type_=type_)
        assert (condition.status, condition.reason, condition.message) == (
            ConditionStatus.FALSE, "StartFailed", message)  # fmt: skip
    assert told(failing) == [("StartFailed", True)]
    assert told(later(failing)) == [], "it was told"


def test_a_start_that_recovers_goes_on_and_ends_with_a_pod_that_serves() -> None:
    failing = begun(starting(failure=CRASH))
    recovered = later(failing, pods=(starting(),))
    assert (found(recovered).reason, told(recovered)) == ("Starting", [("PodsNotReady", False)])
    serving = later(recovered, pods=observed().pods, deployment=observed().deployment)
    assert (found(serving).reason, told(serving)) == ("PodsServe", [("Ready", False)])
    down = later(serving, pods=(starting(failure=CRASH),))
    assert found(down).reason == "NoPodServes", "pods have served"


def test_a_crash_stays_a_failed_start_while_the_container_is_restarted() -> None:
    """A container without a startup probe has started as soon as it runs, and crashes again after a few seconds."""
    waiting = ContainerFailure("agent", waiting="CrashLoopBackOff", ending="exit code 1")
    world, after, reasons = begun(starting()), timedelta(0), []
    for backoff in (10, 20, 40, 80, 160, 300, 300):
        reasons += told(world, after)
        running = ContainerFailure("agent", ending="exit code 1", running_since=NOW + after)
        for failure, seconds in ((running, 5), (waiting, backoff)):
            world = later(world, after, pods=(starting(failure=failure),))
            after += timedelta(seconds=seconds)
            assert found(world, after).reason == "StartFailed"
    assert reasons == [("PodsNotReady", False)], "the first failure gives the only Warning"
    recovered = later(world, after, pods=(starting(failure=replace(running, running_since=NOW + after)),))
    assert found(recovered, after + RECOVERED_AFTER - timedelta(seconds=1)).reason == "StartFailed"
    assert found(recovered, after + RECOVERED_AFTER).reason == "Starting", "the container runs, and another one loads"
    serving = later(world, after, pods=observed().pods, deployment=observed().deployment)
    assert found(serving, after).reason == "PodsServe"


def test_a_start_becomes_a_timeout_once_the_startup_probe_would_have_ended_the_engine() -> None:
    new = begun(starting(), starting("chat-b"))
    assert found(new, LIMIT).reason == "Starting"
    late = later(new, LIMIT)
    over = LIMIT + timedelta(seconds=1)
    timeout = found(late, over)
    assert (timeout.status, timeout.reason) == (ConditionStatus.FALSE, "StartTimeout")
    assert timeout.message == "No pod became ready within 65 minutes: 0 of 2 pods are ready"
    assert told(late, over) == [("StartTimeout", True)]
    assert found(later(late, over, pods=(starting(failure=CRASH),)), over).reason == "StartFailed", "the cause is known"


def test_a_start_whose_pods_are_replaced_again_and_again_becomes_a_timeout_that_names_the_last_end() -> None:
    """An evicted pod lasts for ten minutes, so no pod ever reaches the limit."""
    step, world = timedelta(minutes=10), replace(begun(starting()), deployed=DEPLOYED)
    for number in range(1, 7):
        created = NOW + step * number
        evicted = ReplacedPod(f"chat-{number - 1}", created - step, "Evicted: The node was low on resource: memory")
        world = later(world, step * number, pods=(starting(f"chat-{number}", created=created),), replaced_pod=evicted)
        assert found(world, step * number).reason == "Starting"
    assert found(world, LIMIT).message == (
        "0 of 1 pods serve clients. The last pod that ended: chat-5 (Evicted: The node was low on resource: memory)"
    )
    over = LIMIT + timedelta(seconds=1)
    forgotten = later(world, LIMIT, replaced_pod=None)
    assert found(forgotten, over).reason == "StartTimeout"
    assert found(forgotten, over).message.endswith(
        "0 of 1 pods are ready. The last pod that ended: chat-5 (Evicted: The node was low on resource: memory)"
    )
    assert told(later(forgotten, LIMIT), over) == [("StartTimeout", True)]
    nothing = later(forgotten, over, pods=())
    assert found(nothing, over).reason == "StartTimeout", "the next pod does not exist yet"
    serving = later(nothing, over, pods=observed().pods, deployment=observed().deployment)
    assert (found(serving).reason, written(serving, over).start) == ("PodsServe", None)


def test_a_changed_template_gets_the_whole_time_again() -> None:
    world = replace(begun(starting()), deployed=DEPLOYED)
    late = later(later(world), LIMIT * 2, pods=(starting(created=NOW + LIMIT * 2),))
    assert found(late, LIMIT * 2).reason == "StartTimeout"
    absent = later(late, LIMIT * 2, deployed=None)
    assert found(absent, LIMIT * 2).reason == "StartTimeout", "a Deployment that is made again is no other template"
    template = {"spec": {"containers": [{"name": "sglang", "image": "corrected"}]}}
    corrected = later(absent, LIMIT * 2, deployed=replace(DEPLOYED, template=template))
    assert found(corrected, LIMIT * 2).reason == "Starting"
    assert found(later(corrected, LIMIT * 2), LIMIT * 3).reason == "Starting"
    assert found(later(corrected, LIMIT * 2), LIMIT * 3 + timedelta(seconds=1)).reason == "StartTimeout"


def test_a_pod_that_ended_before_the_start_is_not_named() -> None:
    old = ReplacedPod("chat-old", NOW - timedelta(days=2), "Evicted")
    assert found(begun(starting(), replaced_pod=old)).message == "0 of 1 pods serve clients"


def test_the_newest_pod_that_ended_stays_named_while_an_older_one_lasts() -> None:
    """Kubernetes keeps an evicted pod for hours, and a preempted one only until its containers have ended."""
    evicted = ReplacedPod("chat-0", NOW, "Evicted")
    preempted = ReplacedPod("chat-1", NOW + timedelta(minutes=1), "PreemptionByScheduler")
    world, ends = begun(starting()), []
    for seen in (evicted, preempted, evicted, None):
        world = later(world, replaced_pod=seen)
        start = written(world, timedelta(0)).start
        assert start is not None
        ends.append(start.last_end)
    assert ends == ["chat-0 (Evicted)", *["chat-1 (PreemptionByScheduler)"] * 3]


def test_a_start_after_zero_replicas_begins_now_although_a_pod_of_before_is_still_there() -> None:
    none, one = (spec(serving={"replicas": replicas}) for replicas in (0, 1))
    stuck = later(begun(starting()), LIMIT * 2)
    zero = later(stuck, LIMIT * 2, spec=none)
    assert (written(zero, LIMIT * 2).start, found(zero, LIMIT * 2).reason) == (None, "ScaledToZero")
    up = later(zero, LIMIT * 2, spec=one)
    assert found(up, LIMIT * 2).reason == "Starting"
    assert found(later(up, LIMIT * 2), LIMIT * 3).reason == "Starting"
    kept = later(zero, LIMIT * 2, spec=one)
    kept = replace(kept, status=kept.status.model_copy(update={"start": written(stuck, LIMIT).start}))
    assert found(kept, LIMIT * 2).reason == "Starting", "an operator that does not know the field kept it"


def test_a_start_keeps_its_deadline_while_its_deployment_is_absent() -> None:
    probe = {"periodSeconds": 10, "failureThreshold": 720}
    template = {"spec": {"containers": [{"name": "sglang", "startupProbe": probe}]}}
    slow = begun(starting(), deployed=DeployedTemplate(template, whole=False))
    absent = later(slow, timedelta(0), deployed=None, deployment=None, pods=())
    assert found(absent, timedelta(hours=2)).reason == "Starting"
    assert found(absent, timedelta(hours=2, minutes=6)).reason == "StartTimeout"


def test_a_start_never_begins_in_the_future() -> None:
    """The clock of the API server may be ahead of the operator's."""
    ahead = begun(starting(created=NOW + timedelta(hours=1)))
    start = written(ahead, timedelta(0)).start
    assert start is not None
    assert start.since == NOW


@pytest.mark.parametrize(
    ("world", "why"),
    [
        pytest.param(
            begun(starting(scheduled=False, waiting="Unschedulable", scheduler_message=NO_ROOM)),
            f"1 waits for a node: {NO_ROOM}",
            id="no node",
        ),
        pytest.param(
            begun(deployment=WorkloadView(True, 0, 0, message="exceeded quota: gpus", refused_since=NOW)),
            "exceeded quota: gpus",
            id="a quota",
        ),
        pytest.param(
            begun(starting(), store=replace(store(0), channel=None, registrations={})),
            "the trainer has not registered the initial draft yet",
            id="no draft",
        ),
    ],
)
def test_a_timeout_says_what_the_pods_wait_for(world: Observed, why: str) -> None:
    timeout = found(world, LIMIT * 2)
    assert timeout.reason == "StartTimeout"
    assert why in timeout.message


def test_a_longer_startup_probe_gives_a_start_more_time() -> None:
    probe = {"periodSeconds": 10, "failureThreshold": 720}
    template = {"spec": {"containers": [{"name": "sglang", "startupProbe": probe}]}}
    slow = begun(starting(), deployed=DeployedTemplate(template, whole=False))
    assert found(slow, timedelta(hours=2)).reason == "Starting"
    assert found(slow, timedelta(hours=2, minutes=6)).reason == "StartTimeout"


def test_the_time_begins_with_a_scale_up_from_zero_and_with_a_corrected_template() -> None:
    zero = observed(
        spec=spec(serving={"replicas": 0}), pods=(), deployment=WorkloadView(current=True, replicas=0, ready=0)
    )
    assert found(zero, LIMIT * 9).reason == "ScaledToZero"
    up = later(zero, LIMIT * 9, spec=spec(serving={"replicas": 2}), pods=(starting(created=NOW + LIMIT * 9),))
    assert found(up, LIMIT * 10).reason == "Starting"
    old = starting("chat-old", template_hash="old", failure=NO_IMAGE)
    corrected = begun(old, starting(created=NOW + LIMIT))
    assert found(corrected, LIMIT * 2).reason == "Starting", "a pod of the former template tells nothing of the new one"


def test_a_trainer_that_fails_is_told_until_there_is_a_draft() -> None:
    view = PodView("chat-trainer-a", uid="t", failure=ContainerFailure("trainer", "CrashLoopBackOff", "exit code 1"))
    trainer = WorkloadView(current=True, replicas=1, ready=0, failing_pod=view)
    without_draft = begun(starting(), trainer=trainer, store=replace(store(0), channel=None, registrations={}))
    assert (
        "Container trainer of pod chat-trainer-a ended (CrashLoopBackOff, exit code 1)" in found(without_draft).message
    )
    assert found(replace(without_draft, store=store(0))).reason == "Starting", "pods start without the trainer"


PODS = st.builds(
    starting,
    st.sampled_from(["chat-a", "chat-b"]),
    ready=st.booleans(),
    terminating=st.booleans(),
    failure=st.sampled_from([None, CRASH, NO_IMAGE]),
    created=st.integers(0, 3).map(lambda times: NOW + LIMIT * times),
    template_hash=st.sampled_from(["old", "new"]),
)


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2]), st.lists(PODS, max_size=2, unique_by=lambda view: view.name)),
        min_size=1,
        max_size=6,
    )
)
def test_a_start_that_lasts_too_long_is_never_called_starting(changes: list[tuple[int, list[PodView]]]) -> None:
    """Over any changes of the pods: the reason tells of a start only until a pod has served."""
    world, served, begun_before, from_zero, after = observed(), False, False, False, LIMIT * 5
    for replicas, pods in changes:
        after += LIMIT + timedelta(seconds=1)
        deployment = WorkloadView(current=True, replicas=replicas, ready=0)
        world = replace(world, spec=spec(serving={"replicas": replicas}), pods=tuple(pods), deployment=deployment)
        condition = found(world, after)
        if any(view.ready and not view.terminating for view in pods):
            served, begun_before = True, False
            assert condition.reason == "PodsServe"
        elif replicas == 0:
            served = begun_before = False
            assert condition.reason == "ScaledToZero"
        elif served:
            assert condition.reason == "NoPodServes"
        elif any(not view.terminating for view in pods):
            begun_before = True
            late = "Starting" if from_zero else "StartTimeout"
            assert condition.reason in ("StartFailed", late), "every pod is older than the limit"
        else:
            assert condition.reason == ("StartTimeout" if begun_before else "Starting"), "no pod exists now"
        assert served is (condition.reason not in NEVER_SERVED)
        from_zero = condition.reason == "ScaledToZero"
        world = later(world, after)


REPLACEMENTS = st.lists(
    st.tuples(
        st.integers(1, 40).map(lambda minutes: timedelta(minutes=minutes)),
        st.sampled_from(["wait", "replace", "refuse", "lose", "no Deployment"]),
        st.sampled_from(["old", "new"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=example_count(30))
@given(REPLACEMENTS)
def test_no_end_of_a_pod_moves_the_beginning_of_a_start(changes: list[tuple[timedelta, str, str]]) -> None:
    """Pods of the former template are replaced, too, while an update does not get on."""
    world, after = replace(begun(starting()), deployed=DEPLOYED), timedelta(0)
    world = later(world, after)
    for pause, change, template in changes:
        after += pause
        young = starting(created=NOW + after, template_hash=template)
        refused = WorkloadView(True, 0, 0, message="quota", refused_since=NOW + after)
        world = later(world, after)
        if change == "replace":
            ended = ReplacedPod(world.pods[0].name if world.pods else "chat-z", NOW + after - pause, "deleted")
            world = replace(world, pods=(young,), replaced_pod=ended)
        elif change == "refuse":
            world = replace(world, pods=(), deployment=refused)
        elif change == "lose":
            world = replace(world, pods=(), replaced_pod=None)
        elif change == "no Deployment":
            world = replace(world, pods=(), deployment=None, deployed=None)
        assert found(world, after).reason == ("Starting" if after <= LIMIT else "StartTimeout")
