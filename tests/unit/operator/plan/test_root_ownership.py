"""A root is taken over from a former speculator that is gone, if the lineage fits. One that lost its root stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.observe.observed import Observed, StoreView
from aurora_protocol.draft_records import ChannelReason, RootOwner
from tests.unit.operator.worlds import (
    NOW,
    OWNER,
    channel,
    condition,
    evidence,
    lineage,
    made,
    observed,
    root_owner,
    spec,
    status,
    store,
)

ROOT = "aurora/team/chat"
FORMER = RootOwner(id="99999999", namespace="team", name="chat", since=NOW)
"""The former life of the speculator, perhaps in a cluster that is gone."""
ELSEWHERE = FORMER.model_copy(update={"namespace": "other", "name": "old"})
"""The root's owner where two speculators have the same path."""


def former_store(**more: Any) -> StoreView:
    """The store of a speculator that has promoted version 1."""
    small = lineage().model_copy(update={"draft_vocab_size": 16})
    former = channel(1, epoch=5, previous=0, rejected=(2,), owner=FORMER)
    base = store(0, 1, 2, active=1, lineage=small, channel=former)
    return replace(base, **more)


def created_again(**more: Any) -> Observed:
    """A speculator without status and children, whose root is a former one's."""
    given = spec(draft={"vocabSize": 256})
    fields: dict[str, Any] = {"spec": given, "store": former_store(), "pods": (), "deployment": None} | more
    return observed(**fields)


def kinds(world: Observed) -> list[str]:
    return [child["kind"] for child in made(world).children]


def test_a_speculator_that_is_created_again_goes_on_with_one_record_and_changes_no_version() -> None:
    plan = made(created_again())
    taken = plan.advance
    assert taken is not None
    assert (taken.epoch, taken.active, taken.previous, taken.rejected) == (6, 1, 0, (2,))
    assert taken.reason is ChannelReason.RESTORED
    assert taken.owner == root_owner()
    assert [note.reason for note in plan.notes if note.reason == "Restored"] == ["Restored"]
    assert plan.moving


def test_the_first_record_names_the_owner_and_later_records_keep_it() -> None:
    first = made(observed(store=store(0, channel=None))).advance
    assert first is not None
    assert (first.epoch, first.owner) == (1, root_owner())
    pinned = observed(store=store(0, 1, channel=channel(1, previous=0)), spec=spec(rollout={"pin": 0}))
    later = made(pinned).advance
    assert later is not None
    assert later.owner == root_owner()


def test_no_pod_starts_before_the_root_is_ours() -> None:
    assert "Deployment" not in kinds(created_again())
    ours = created_again(store=former_store(channel=channel(1, epoch=6, previous=0)))
    assert kinds(ours).count("Deployment") == 2
    assert made(ours).advance is None
    assert status(ours).active is not None
    assert status(ours).store_root == ROOT


def test_the_owner_with_another_name_may_live_so_a_person_decides() -> None:
    owned = former_store(channel=channel(1, epoch=5, owner=ELSEWHERE))
    for former in (ELSEWHERE, FORMER.model_copy(update={"name": "old"}), FORMER.model_copy(update={"namespace": "x"})):
        world = created_again(store=former_store(channel=channel(1, epoch=5, owner=former)))
        assert made(world).advance is None
        assert condition(world, ConditionType.STORAGE_READY).reason == "PathRefused"
    refused = created_again(store=owned)
    told = condition(refused, ConditionType.STORAGE_READY).message
    assert "AuroraSpeculator other/old (uid 99999999…)" in told
    assert "kubectl annotate auroraspeculator chat -n team aurora.dev/adopt=true" in told
    assert condition(refused, ConditionType.STALLED).status is ConditionStatus.TRUE
    assert "Deployment" not in kinds(refused)
    assert not made(refused).moving, "nothing but a person can change the outcome"
    adopting = replace(refused, owner=replace(OWNER, adopts=True))
    taken = made(adopting).advance
    assert taken is not None
    assert taken.owner == root_owner()


def test_another_target_is_refused() -> None:
    world = created_again(spec=spec(target={"model": "org/other"}))
    assert made(world).advance is None
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "PathRefused"
    assert "org/model" in shown.message


def test_a_root_that_is_being_deleted_is_refused() -> None:
    closed = channel(1, epoch=5, owner=FORMER).model_copy(update={"reason": ChannelReason.DELETING})
    world = created_again(store=former_store(channel=closed), owner=replace(OWNER, adopts=True))
    assert made(world).advance is None
    assert "was being deleted" in condition(world, ConditionType.STORAGE_READY).message


def test_a_speculator_that_lost_its_root_decides_nothing_and_says_why() -> None:
    passed, followed = (evidence(1),), SpeculatorStatus(active=VersionStatus(version=1))
    new = RootOwner(id="55555555", namespace="team", name="chat", since=NOW)
    lost = observed(store=store(0, 1, channel=channel(1, owner=new), evidence=passed), status=followed)
    worlds = [lost, replace(lost, owner=replace(OWNER, adopts=True))]
    for world in worlds:
        plan = made(world)
        assert plan.advance is None
        assert (plan.job, plan.swaps) == (None, ())
        replicas = {c["metadata"]["name"]: c["spec"]["replicas"] for c in plan.children if c["kind"] == "Deployment"}
        assert replicas == {"chat": world.spec.serving.replicas, "chat-trainer": 0}, "serves on, and learns nothing"
        trainer = condition(world, ConditionType.TRAINER_READY)
        assert (trainer.status.value, trainer.reason) == ("False", "TakenOver")
        shown = condition(world, ConditionType.STORAGE_READY)
        assert shown.reason == "TakenOver"
        assert "AuroraSpeculator team/chat (uid 55555555…)" in shown.message
        assert condition(world, ConditionType.READY).reason == "StorageTakenOver"
        assert not plan.moving


def test_a_speculator_that_took_its_root_over_follows_no_later_record_of_a_stranger() -> None:
    """A bucket writer names another owner, as if the takeover were still to come."""
    forged = channel(2, epoch=7, previous=1).model_copy(
        update={"owner": RootOwner(id="99999999", namespace="x", name="y", since=NOW)}
    )
    once = SpeculatorStatus(active=VersionStatus(version=1))
    world = created_again(store=former_store(channel=forged), status=once)
    assert made(world).advance is None
    told = condition(world, ConditionType.STORAGE_READY)
    assert told.reason == "TakenOver"
    assert "channel/00000007.json" in told.message


def test_without_keys_the_operator_makes_them_and_decides_nothing() -> None:
    world = observed(store=StoreView(reason="SigningKeysMissing", error="no keys"), keys_exist=False)
    plan = made(world)
    assert (plan.create_keys, plan.advance, plan.job, plan.swaps) == (True, None, None, ())
    assert (plan.status, plan.notes) == (None, ()), "it takes one reconcile, and nobody needs to know"
    assert made(replace(world, spec_fault="no such flag")).create_keys, "keys shape no child"
    refused = made(replace(world, apply_errors=("Secret chat-keys: quota",)))
    assert refused.status is not None
    storage = next(c for c in refused.status.conditions if c.type is ConditionType.STORAGE_READY)
    assert storage.reason == "SigningKeysMissing"


def test_a_channel_without_a_lineage_is_refused() -> None:
    world = created_again(store=former_store(lineage=None))
    assert made(world).advance is None
    assert condition(world, ConditionType.STORAGE_READY).reason == "PathRefused"
