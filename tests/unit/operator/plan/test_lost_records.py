"""A store that lost its records takes the draft from no pod, until a person gives the records up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutStatus,
    SpeculatorStatus,
    TrainingStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import JobView, Observed, StoreView, UserRequests
from aurora_operator.plan import Plan
from aurora_operator.plan.rest import trainer_replicas
from aurora_protocol.draft_records import RootOwner
from tests.unit.operator.worlds import (
    MINIMAL,
    NOW,
    channel,
    condition,
    lineage,
    made,
    observed,
    pod,
    registration,
    spec,
    status,
    store,
    validating,
)

EMPTY = StoreView()
BEGUN_AGAIN = store(0, channel=None)
"""The trainer has made the lineage and version 0 again."""
CHANNEL_LOST = store(0, 1, 200, 201, channel=None)
_COMMAND = (
    "kubectl annotate auroraspeculator chat -n team --overwrite aurora.dev/promote- aurora.dev/abort-"
    " aurora.dev/measure- aurora.dev/start-over=200-57"
)
SERVED = SpeculatorStatus(
    active=VersionStatus(version=200),
    previous=VersionStatus(version=198),
    candidate=CandidateStatus(version=201, phase=CandidatePhase.VALIDATED, job="chat-validate-v201-1"),
    rollout=RolloutStatus(version=200, epoch=57),
    rejected=[1, 199],
    training=TrainingStatus(step=9000),
    lineage=1,
)


def lost(seen: StoreView = EMPTY, **more: Any) -> Observed:
    """Both pods serve version 200, and the store has no channel."""
    pods = (pod("chat-a", 200), pod("chat-b", 200))
    parts: dict[str, Any] = {"store": seen, "status": SERVED, "pods": pods}
    return observed(**(parts | more))


def confirmed(version: int = 200, epoch: int = 57, **more: Any) -> Observed:
    return lost(more.pop("store", BEGUN_AGAIN), user_requests=UserRequests(start_over=(version, epoch)), **more)


@pytest.mark.parametrize("seen", [EMPTY, BEGUN_AGAIN, CHANNEL_LOST], ids=["empty", "begun again", "channel lost"])
def test_pods_keep_their_draft_and_a_person_is_told(seen: StoreView) -> None:
    world = lost(seen)
    plan = made(world)
    assert (plan.advance, plan.swaps, plan.job, plan.leases, plan.moving) == (None, (), None, (), False)
    told = status(world)
    assert (told.active, told.candidate, told.rejected) == (SERVED.active, SERVED.candidate, SERVED.rejected)
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "RecordsLost"
    assert "version 200 is active, but s3://bucket/aurora/team/chat-01234567 has no record" in shown.message
    assert "New pods do not start" in shown.message
    assert _COMMAND in shown.message
    assert condition(world, ConditionType.READY).reason == "StorageRecordsLost"
    assert [(note.reason, note.warning) for note in plan.notes] == [("StorageRecordsLost", True)]
    assert made(replace(world, status=told)).notes == (), "once"


def test_the_trainer_begins_no_lineage_that_the_returning_records_would_be_mixed_with() -> None:
    world = lost()
    assert condition(world, ConditionType.TRAINER_READY).reason == "RecordsLost"
    replicas = {c["metadata"]["name"]: c["spec"]["replicas"] for c in made(world).children if c["kind"] == "Deployment"}
    assert replicas == {"chat": 2, "chat-trainer": 0}
    away = replace(world, status=status(world), store=StoreView(reason="Unreachable", error="no route"))
    assert trainer_replicas(away) == 0
    assert condition(away, ConditionType.TRAINER_READY).reason == "RecordsLost"


def test_records_that_are_put_back_are_used_as_if_nothing_had_happened() -> None:
    back = store(0, 200, 201, channel=channel(200, epoch=57, previous=198))
    told = status(replace(lost(), store=back, status=status(lost())))
    assert (told.active and told.active.version, told.candidate and told.candidate.version) == (200, 201)
    assert next(c for c in told.conditions if c.type is ConditionType.STORAGE_READY).reason == "Ready"


def test_a_copy_of_the_records_counts_once_the_active_version_is_whole() -> None:
    """A copy comes in the order of the keys: the channel from its first epoch on, the registry last."""
    told = status(lost())
    parts = [
        (store(0, channel=channel(0)), "has only older records of the channel, the newest for version 0"),
        (store(0, channel=channel(120, epoch=30)), "the newest for version 120"),
        (store(0, channel=channel(200, epoch=57)), "lacks registry/00000200.json"),
    ]
    for part, missing in parts:
        world = lost(part, status=told)
        plan = made(world)
        assert (plan.advance, plan.swaps, plan.job) == (None, (), None)
        told = plan.status or told
        shown = next(c for c in told.conditions if c.type is ConditionType.STORAGE_READY)
        assert shown.reason == "RecordsLost"
        assert missing in shown.message
    whole = lost(store(0, 200, channel=channel(200, epoch=57)), status=told)
    assert condition(whole, ConditionType.STORAGE_READY).reason == "Ready"


@pytest.mark.parametrize("version", [0, 120])
def test_nothing_starts_over_while_the_channel_has_records(version: int) -> None:
    """The plan after it would follow their version, and would hide that the records of the active one are lost."""
    world = lost(store(0, channel=channel(version, epoch=30)), status=status(lost()))
    asked = replace(world, user_requests=UserRequests(start_over=(200, 57)))
    told = made(asked).status or asked.status
    assert told.active == SERVED.active
    (shown,) = (c for c in told.conditions if c.type is ConditionType.STORAGE_READY)
    assert shown.reason == "RecordsLost"
    assert "delete what is left below aurora/team/chat-01234567/channel/; this message then" in shown.message
    assert "start-over" not in shown.message


def test_an_older_channel_is_not_followed_to_another_version() -> None:
    """A backup comes from before live traffic rejected version 2. The store was never seen without its records."""
    pods, newest = (pod("chat-a", 1), pod("chat-b", 1)), channel(1, epoch=9, previous=0, rejected=(2,))
    followed = status(observed(store=store(0, 1, 2, channel=newest), pods=pods))
    backup = store(0, 1, 2, channel=channel(2, epoch=8, previous=1))
    world = observed(store=backup, pods=pods, status=followed)
    plan = made(world)
    assert (plan.advance, plan.swaps, plan.job) == (None, (), None)
    assert status(world).active == followed.active
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "RecordsLost"
    assert "has only older records of the channel, the newest for version 2" in shown.message
    assert "A pod that starts takes version 2, which the old record names" in shown.message
    assert "delete what is left below aurora/team/chat-01234567/channel/" in shown.message
    whole = replace(world, store=store(0, 1, 2, channel=newest), status=status(world))
    assert condition(whole, ConditionType.STORAGE_READY).reason == "Ready"


def test_an_older_channel_of_a_new_owner_is_no_loss_and_nobody_is_told_to_delete_it() -> None:
    """The new owner promoted another version, and its store came back from a backup."""
    pods = (pod("chat-a", 1), pod("chat-b", 1))
    followed = status(observed(store=store(0, 1, channel=channel(1, epoch=9, previous=0)), pods=pods))
    new_owner = RootOwner(id="99999999", namespace="team", name="other", since=NOW)
    theirs = channel(2, epoch=8, previous=1).model_copy(update={"owner": new_owner})
    world = observed(store=store(0, 1, 2, channel=theirs), pods=pods, status=followed)
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "TakenOver"
    assert "channel/;" not in shown.message
    assert (made(world).advance, made(world).swaps) == (None, ())


def test_an_older_channel_that_names_the_active_version_is_followed_on() -> None:
    pods = (pod("chat-a", 1), pod("chat-b", 1))
    followed = status(observed(store=store(0, 1, channel=channel(1, epoch=9)), pods=pods))
    world = observed(store=store(0, 1, channel=channel(1, epoch=7)), pods=pods, status=followed)
    again = status(world)
    assert condition(world, ConditionType.STORAGE_READY).reason == "Ready"
    promoted = replace(world, store=store(0, 1, 2, channel=channel(2, epoch=8, previous=1)), status=again)
    assert condition(promoted, ConditionType.STORAGE_READY).reason == "Ready", "a record after the one that it follows"


def test_the_status_of_an_older_operator_names_no_epoch_and_is_followed() -> None:
    older = SERVED.model_copy(update={"operator_state": {}})
    world = lost(store(0, 199, channel=channel(199, epoch=3)), status=older)
    assert condition(world, ConditionType.STORAGE_READY).reason == "Ready"


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


def start_over(world: Observed) -> tuple[Plan, SpeculatorStatus]:
    plan = made(world)
    assert plan.status is not None
    return plan, plan.status


def test_after_a_confirmation_the_status_forgets_the_versions_before_the_first_record_is_written() -> None:
    jobs = tuple(JobView(f"chat-validate-v{version}-1", version, 1, succeeded=True) for version in (1, 201))
    plan, told = start_over(confirmed(jobs=jobs))
    assert (plan.advance, plan.swaps) == (None, ())
    assert (told.active, told.previous, told.candidate, told.rejected) == (None, None, None, [])
    assert (told.rollout, told.training) == (RolloutStatus(epoch=58), TrainingStatus()), "agents know epoch 57"
    assert [(entry.event, entry.version) for entry in told.history] == [("StartedOver", 200)]
    assert plan.delete_jobs == ("chat-validate-v1-1", "chat-validate-v201-1"), "the new versions have their names"
    assert "StartedOver" in [note.reason for note in plan.notes]

    world = replace(confirmed(), status=told)
    first = made(world).advance
    assert first is not None
    assert (first.epoch, first.active) == (1, 0)
    again = replace(world, store=store(0, 1))
    swaps = made(again).swaps
    assert {swap.request.version for swap in swaps} == {0}
    assert all(swap.request.epoch >= 57 for swap in swaps)
    at_rest = replace(again, pods=(pod("chat-a", 0), pod("chat-b", 0)), status=status(again))
    assert validating(at_rest) == 1, "a number that was rejected before is measured"


@pytest.mark.parametrize(("rejected", "measured"), [([1, 199], 201), ([199, 201], None)])
def test_a_rejected_version_that_is_still_registered_stays_rejected(rejected: list[int], measured: int | None) -> None:
    """Only the channel was lost, so the new channel begins at once with the old lineage and its version 0."""
    before = SERVED.model_copy(update={"rejected": rejected})
    told = start_over(confirmed(store=CHANNEL_LOST, status=before))[1]
    assert told.rejected == [version for version in rejected if version != 199], "version 199 is not registered"
    world = observed(store=replace(CHANNEL_LOST, channel=channel(0)), status=told)
    assert validating(world) == measured


@pytest.mark.parametrize("left", ["promote", "abort", "measure"])
def test_nothing_starts_over_while_a_decision_would_count_for_a_new_version_with_its_number(left: str) -> None:
    asked: dict[str, Any] = {left: (1, 2) if left == "measure" else 1}
    world = lost(BEGUN_AGAIN, user_requests=UserRequests(start_over=(200, 57), **asked))
    assert status(world).active == SERVED.active
    message = condition(world, ConditionType.STORAGE_READY).message
    assert f"Nothing begins again while aurora.dev/{left} would decide about new versions" in message
    assert start_over(replace(world, user_requests=UserRequests(start_over=(200, 57))))[1].active is None


def test_a_confirmation_does_not_count_for_the_next_loss_of_a_version_with_this_number() -> None:
    """The annotation stays, and the new lineage counts from 0 again."""
    forgotten = start_over(confirmed())[1]
    again = status(replace(confirmed(), status=forgotten, store=store(0, 200, channel=channel(200, epoch=2))))
    assert again.active is not None
    world = replace(confirmed(), status=again)
    assert condition(world, ConditionType.STORAGE_READY).reason == "RecordsLost"
    assert status(world).active == again.active


def test_a_confirmation_begins_a_lineage_although_training_was_not_worth_its_cost() -> None:
    world = confirmed(store=EMPTY)
    assert trainer_replicas(replace(world, status=start_over(world)[1])) == 1


def test_a_confirmation_counts_only_for_the_active_version_and_a_lost_channel() -> None:
    for other in (confirmed(199), confirmed(epoch=56)):
        assert condition(other, ConditionType.STORAGE_READY).reason == "RecordsLost"
    kept = store(0, 200, channel=channel(200, epoch=57))
    assert status(confirmed(store=kept)).active is not None
    away = confirmed(store=StoreView(reason="Unreachable", error="no route"))
    assert status(away).active == SERVED.active


def test_nothing_starts_over_while_the_finalizer_is_refused() -> None:
    """Without an active version, the next plan would be the finalizer alone, and would fail each time."""
    deletes = spec(serving={"replicas": 2}, store=MINIMAL["store"] | {"deletionPolicy": "Delete"})
    refused = confirmed(spec=deletes, finalizer_refused=True, apply_errors=("the finalizer: denied",))
    plan, told = start_over(refused)
    assert plan.finalizer is True, "it is tried again"
    assert told.active == SERVED.active
    shown = {c.type: c.reason for c in told.conditions}
    assert shown[ConditionType.STORAGE_READY] == "RecordsLost"
    assert shown[ConditionType.DEGRADED] == "ApplyRefused"
    assert start_over(replace(refused, has_finalizer=True))[1].active is None


def test_a_root_that_was_taken_over_cannot_start_over() -> None:
    """An empty root belongs to the speculator that it is named after, so this one's trainer could not write there."""
    restored = spec(serving={"replicas": 2}, store=MINIMAL["store"] | {"restoreFrom": "aurora/team/old-99999999"})
    world = confirmed(spec=restored)
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "RecordsLost"
    assert "delete the speculator, and create it again without store.restoreFrom" in shown.message
    assert status(world).active == SERVED.active


def test_a_candidate_without_a_registration_keeps_no_other_version_from_the_gate() -> None:
    """An operator without this module has started over by itself, and kept the candidate of the lost lineage."""
    stuck = SERVED.model_copy(update={"active": VersionStatus(version=0), "rollout": RolloutStatus(), "rejected": []})
    known = {version: registration(version) for version in (0, 1)}
    world = observed(status=stuck, store=StoreView(lineage=lineage(), channel=channel(0), registrations=known))
    assert validating(world) == 1
