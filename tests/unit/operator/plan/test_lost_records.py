"""A store that lost its records, or a single registration, takes the draft from no pod."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.children.inference_deployment import choice_digest
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_operator.plan.rollout.roll import AnalysisState, Roll
from aurora_operator.plan.wanted_children import trainer_replicas
from aurora_protocol.agent_api import LiveCounters
from tests.unit.operator.worlds import NOW, channel, condition, digest, made, observed, pod, status, store

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


# a registration -------------------------------------------------------------------------------------------------------


def returning(*, signed: bool) -> Observed:
    """The canary of version 1 failed, and its pod has to return to version 0, which is not registered any more."""
    named = channel(0, epoch=2).model_copy(update={"active_digest": digest(0) if signed else None})
    roll = RolloutStatus(phase=RolloutPhase.IDLE, version=1, epoch=4)
    return observed(
        store=replace(store(1), channel=named),
        pods=(pod("chat-a", 1), pod("chat-b", 0)),
        status=SpeculatorStatus(rollout=roll),
    )


def watched() -> Observed:
    """Version 1 was promoted and is watched. Version 0 is not registered any more."""
    digests = {"active_digest": digest(1), "previous_digest": digest(0)}
    named = channel(1, epoch=2, previous=0).model_copy(update=digests)
    analysis = AnalysisState(serving_digest=choice_digest(observed().owner, observed().spec), baseline=LiveCounters())
    roll = Roll(phase=RolloutPhase.JUDGING, version=1, epoch=2, promoted=True, progressed=NOW, analysis=analysis)
    rollout, operator_state = roll.status_parts()
    return observed(
        store=replace(store(1), channel=named),
        pods=(pod("chat-a", 1), pod("chat-b", 1)),
        status=SpeculatorStatus(rollout=rollout, operator_state=operator_state),
    )


@pytest.mark.parametrize("signed", [True, False])
def test_a_pod_is_asked_by_the_digest_that_the_signed_record_names(*, signed: bool) -> None:
    """An agent loads only weights with this digest, and still has those of the former version on its disk."""
    world = returning(signed=signed)
    asked = [(swap.pod, swap.request.version, swap.request.digest) for swap in made(world).swaps]
    assert asked == ([("chat-a", 0, digest(0))] if signed else [])


def test_a_rollback_goes_on_without_the_registration_of_the_former_version() -> None:
    world = watched()
    result = made(replace(world, abort=1))
    assert result.advance is not None
    assert result.status is not None
    assert (result.advance.active, result.advance.active_digest) == (0, digest(0))
    after = replace(world, store=replace(world.store, channel=result.advance), status=result.status)
    assert {(swap.request.version, swap.request.digest) for swap in made(after).swaps} == {(0, digest(0))}
