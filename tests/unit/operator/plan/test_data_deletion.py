"""The steps of deleting a speculator's stored objects, and the finalizer that holds the speculator meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_api.v1alpha1.store import DeletionPolicy
from aurora_operator.plan import Plan
from aurora_operator.plan.data_deletion import (
    MAX_POD_WAIT_SECONDS,
    DeletionFacts,
    DeletionStep,
    end_note,
    failure_note,
    failure_text,
    next_step,
)
from aurora_store.root.root_deletion import DeletionProgress
from tests.unit.operator.worlds import MINIMAL, condition, made, observed, spec

DELETE, RETAIN = DeletionPolicy.DELETE, DeletionPolicy.RETAIN
DELETING = spec(store=MINIMAL["store"] | {"deletionPolicy": "Delete"})


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        (DeletionFacts(DELETE, workloads_exist=True, running_pods=3, seconds=0), DeletionStep.STOP_WORKLOADS),
        (DeletionFacts(DELETE, workloads_exist=False, running_pods=3, seconds=1), DeletionStep.WAIT_FOR_PODS),
        (DeletionFacts(DELETE, workloads_exist=False, running_pods=0, seconds=1), DeletionStep.DELETE_OBJECTS),
        (
            DeletionFacts(DELETE, workloads_exist=False, running_pods=1, seconds=MAX_POD_WAIT_SECONDS),
            DeletionStep.DELETE_OBJECTS,
        ),
        (DeletionFacts(RETAIN, workloads_exist=True, running_pods=3, seconds=1e6), DeletionStep.RELEASE),
    ],
)
def test_pods_end_before_objects_are_deleted_and_retain_ends_everything(
    facts: DeletionFacts, step: DeletionStep
) -> None:
    assert next_step(facts) is step


def test_the_finalizer_comes_before_anything_is_stored_and_goes_when_the_policy_changes() -> None:
    assert made(observed(spec=DELETING)) == Plan(finalizer=True, moving=True)
    assert made(observed(spec=DELETING, has_finalizer=True)).finalizer is None
    assert made(observed(has_finalizer=True)) == Plan(finalizer=False, moving=True)
    assert made(observed()).finalizer is None


def test_a_refused_finalizer_holds_back_nothing_but_the_first_draft() -> None:
    new = observed(spec=DELETING, finalizer_refused=True, apply_errors=("the finalizer: denied",))
    assert made(new) == Plan(finalizer=True, moving=True), "nothing is stored before the finalizer is there"
    served = replace(new, status=SpeculatorStatus(active=VersionStatus(version=0)))
    assert made(served).finalizer, "it is tried again, before the rest"
    assert made(served).children
    assert condition(served, ConditionType.STALLED).reason == "ApplyRefused"
    stays = observed(has_finalizer=True, finalizer_refused=True, apply_errors=("the finalizer: stays",))
    assert made(stays).finalizer is False
    assert made(stays).children, "also a new speculator starts although its finalizer cannot be removed"
    assert condition(stays, ConditionType.STALLED).reason == "ApplyRefused"


def test_the_events_give_counts_and_the_way_out() -> None:
    done = end_note(DeletionProgress(12, 3 << 20, done=True), "s3://bucket/root")
    assert done.message == "Deleted 12 objects (3.0 MiB) below s3://bucket/root, and a listing finds no object"
    versioned = end_note(DeletionProgress(12, 3 << 20, done=True, versions=7), "s3://bucket/root")
    assert versioned.message.startswith("Deleted 12 objects and 7 stored versions and delete markers (3.0 MiB) below")
    remains = end_note(DeletionProgress(done=True, remains="x" * 2000), "s3://bucket/root")
    assert (remains.reason, remains.warning) == ("DataMayRemain", True)
    assert remains.message.endswith("(docs/how-to/erasing-data.md)")
    kept = end_note(DeletionProgress(kept="the root belongs to another"), "s3://bucket/root")
    assert (kept.reason, kept.warning) == ("DataKept", False)
    failed = failure_note(failure_text("x" * 2000, "s3://bucket/root", "team", "chat"))
    assert failed.warning
    assert """kubectl patch auroraspeculator chat -n team --type merge -p '{"spec":{"store":{"deletionPolicy":""" in (
        failed.message
    )
    assert max(len(failed.message), len(remains.message)) < 1024, "an Event holds no more"
