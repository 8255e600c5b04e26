"""A store that lost its records takes the draft from no pod."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_operator.plan.wanted_children import trainer_replicas
from tests.unit.operator.worlds import (
    channel,
    condition,
    made,
    observed,
    pod,
    status,
    store,
)

EMPTY = StoreView()
BEGUN_AGAIN = store(0, channel=None)
"""The trainer has made the lineage and version 0 again."""
CHANNEL_LOST = store(0, 1, 200, 201, channel=None)
SERVED = SpeculatorStatus(
    active=VersionStatus(version=200),
    previous=PreviousVersion(version=198),
    candidate=CandidateStatus(version=201, phase=CandidatePhase.VALIDATED, job="chat-validate-v201-1"),
    rollout=RolloutStatus(version=200, epoch=57),
    rejected=[1, 199],
    training=TrainingStatus(step=9000),
)


def lost(seen: StoreView = EMPTY, **more: Any) -> Observed:
    """Both pods serve version 200, and the store has no channel."""
    pods = (pod("chat-a", 200), pod("chat-b", 200))
    parts: dict[str, Any] = {"store": seen, "status": SERVED, "pods": pods}
    return observed(**(parts | more))


@pytest.mark.parametrize("seen", [EMPTY, BEGUN_AGAIN, CHANNEL_LOST], ids=["empty", "begun again", "channel lost"])
def test_pods_keep_their_draft_and_a_person_is_told(seen: StoreView) -> None:
    world = lost(seen)
    plan = made(world)
    assert (plan.advance, plan.swaps, plan.job, plan.moving) == (None, (), None, False)
    told = status(world)
    assert (told.active, told.candidate, told.rejected) == (SERVED.active, SERVED.candidate, SERVED.rejected)
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "RecordsLost"
    assert "version 200 is active, but s3://bucket/aurora/team/chat has no record" in shown.message
    assert condition(world, ConditionType.READY).reason == "StorageRecordsLost"
    assert [(note.reason, note.warning) for note in plan.notes] == [("StorageRecordsLost", True)]
    assert made(replace(world, status=told)).notes == (), "once"


def test_the_trainer_begins_no_lineage_that_the_returning_records_would_be_mixed_with() -> None:
    world = lost()
    assert condition(world, ConditionType.TRAINER_READY).reason == "RecordsLost"
    replicas = {c["metadata"]["name"]: c["spec"]["replicas"] for c in made(world).children if c["kind"] == "Deployment"}
    assert replicas == {"chat": 2, "chat-trainer": 0}
    stopped = WorkloadView(current=True, replicas=0, ready=0)
    away = replace(world, trainer=stopped, status=status(world), store=StoreView(reason="Unreachable", error="x"))
    assert trainer_replicas(away) == 0
    assert condition(away, ConditionType.TRAINER_READY).reason == "PodNotReady"


def test_records_that_are_put_back_are_used_as_if_nothing_had_happened() -> None:
    back = store(0, 200, 201, channel=channel(200, epoch=57, previous=198))
    told = status(replace(lost(), store=back, status=status(lost())))
    assert (told.active and told.active.version, told.candidate and told.candidate.version) == (200, 201)
    assert next(c for c in told.conditions if c.type is ConditionType.STORAGE_READY).reason == "Ready"


def test_a_record_for_another_version_is_followed_when_nothing_was_lost() -> None:
    """The operator died after it advanced the channel, and before it wrote the status."""
    promoted = store(0, 200, 201, channel=channel(201, epoch=58, previous=200))
    active = status(lost(promoted)).active
    assert active is not None
    assert active.version == 201


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(observed(store=BEGUN_AGAIN, status=SpeculatorStatus(), pods=()), id="a new speculator"),
        pytest.param(observed(store=BEGUN_AGAIN, status=SpeculatorStatus()), id="a status that was lost"),
    ],
)
def test_without_an_active_version_nothing_is_lost(world: Observed) -> None:
    first = made(world).advance
    assert first is not None
    assert (first.epoch, first.active) == (1, 0)


@pytest.mark.parametrize("reason", ["Unreachable", "SecretMissing", "SigningKeysMissing", "InvalidRecord"])
def test_a_store_that_cannot_be_read_has_lost_nothing(reason: str) -> None:
    """As during an upgrade of the operator, which reads the store anew."""
    assert condition(lost(StoreView(reason=reason, error="x")), ConditionType.STORAGE_READY).reason == reason
