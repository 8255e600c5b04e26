"""A root is taken over only if the spec asks for it and the lineage fits. A speculator that lost its root stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.observe.observed import Observed, StoreView
from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store.keys import owner_id
from tests.unit.operator.worlds import (
    NOW,
    OWNER,
    channel,
    condition,
    evidence,
    lineage,
    made,
    observed,
    registration,
    spec,
    status,
    store,
)

FORMER_ROOT = "aurora/team/old-99999999"
OURS = owner_id(OWNER.uid)


def restoring(root: str = FORMER_ROOT, **parts: Any) -> Any:
    target_store = {"bucket": "bucket", "credentials": {"secretRef": {"name": "s3"}}, "restoreFrom": root}
    return spec(**({"store": target_store, "draft": {"vocabSize": 256}} | parts))


def former_store(**more: Any) -> StoreView:
    """The store of a speculator that has promoted version 1."""
    small = lineage().model_copy(update={"draft_vocab_size": 16})
    base = store(0, 1, 2, active=1, lineage=small, channel=channel(1, epoch=5, previous=0, rejected=(2,)))
    return replace(base, **more)


def restored(**more: Any) -> Observed:
    fields: dict[str, Any] = {"spec": restoring(), "store": former_store(), "pods": (), "deployment": None} | more
    return observed(**fields)


def kinds(world: Observed) -> list[str]:
    return [child["kind"] for child in made(world).children]


def taken_over(by: str = OURS) -> Channel:
    first = made(restored()).advance
    assert first is not None
    assert first.owner is not None
    return first.model_copy(update={"owner": first.owner.model_copy(update={"id": by})})


def test_the_takeover_is_the_next_record_of_the_channel_and_changes_no_version() -> None:
    plan = made(restored())
    taken = plan.advance
    assert taken is not None
    assert (taken.epoch, taken.active, taken.previous, taken.rejected) == (6, 1, 0, (2,))
    assert taken.reason is ChannelReason.RESTORED
    assert taken.owner == RootOwner(id=OURS, namespace="team", name="chat", since=NOW)
    assert [note.reason for note in plan.notes if note.reason == "Restored"] == ["Restored"]
    assert plan.moving


def test_no_pod_starts_before_the_root_is_ours() -> None:
    assert "Deployment" not in kinds(restored())
    ours = restored(store=former_store(channel=taken_over()))
    assert kinds(ours).count("Deployment") == 2
    assert made(ours).advance is None
    assert status(ours).active is not None
    assert status(ours).store_root == FORMER_ROOT


def test_pods_that_run_are_still_applied_while_the_store_is_away() -> None:
    away = StoreView(reason="Unreachable", error="no route")
    assert "Deployment" not in kinds(restored(store=away))
    assert kinds(restored(store=away, deployment=observed().deployment)).count("Deployment") == 2


def test_another_target_is_refused() -> None:
    world = restored(spec=restoring(target={"model": "org/other"}))
    assert made(world).advance is None
    shown = condition(world, ConditionType.STORAGE_READY)
    assert shown.reason == "RestoreRefused"
    assert "org/model" in shown.message
    assert not made(world).moving, "nothing but a person can change the outcome"


def test_a_root_without_a_channel_is_refused() -> None:
    for empty in (StoreView(), StoreView(lineage=lineage())):
        world = restored(store=empty)
        assert made(world).advance is None
        assert "nothing to restore" in condition(world, ConditionType.STORAGE_READY).message


def test_a_root_that_is_being_deleted_is_refused() -> None:
    closed = channel(1, epoch=5).model_copy(update={"reason": ChannelReason.DELETING})
    world = restored(store=former_store(channel=closed))
    assert made(world).advance is None
    assert "is being deleted" in condition(world, ConditionType.STORAGE_READY).message


def test_the_operators_own_identity_takes_over_no_root_of_another_namespace() -> None:
    identity = {"bucket": "bucket", "credentials": {"serviceAccountName": "cloud"}}
    for root, taken in ((FORMER_ROOT, True), ("aurora/other/old-99999999", False), ("team/x/old-99999999", False)):
        world = restored(spec=restoring(store=identity | {"restoreFrom": root}))
        assert (made(world).advance is not None) is taken


def test_a_speculator_that_lost_its_root_decides_nothing_and_says_why() -> None:
    passed, followed = (evidence(1),), SpeculatorStatus(active=VersionStatus(version=1))
    other, deployment = taken_over("55555555"), observed().deployment
    worlds = [
        observed(store=store(0, 1, channel=other, evidence=passed)),
        restored(store=former_store(channel=other), status=followed, deployment=deployment),
    ]
    for world in worlds:
        plan = made(world)
        assert plan.advance is None
        assert (plan.job, plan.swaps, plan.leases) == (None, (), ())
        replicas = {c["metadata"]["name"]: c["spec"]["replicas"] for c in plan.children if c["kind"] == "Deployment"}
        assert replicas == {"chat": world.spec.serving.replicas, "chat-trainer": 0}, "serves on, and learns nothing"
        trainer = condition(world, ConditionType.TRAINER_READY)
        assert (trainer.status.value, trainer.reason) == ("False", "TakenOver")
        shown = condition(world, ConditionType.STORAGE_READY)
        assert shown.reason == "TakenOver"
        assert "AuroraSpeculator team/chat (uid 55555555…)" in shown.message
        assert condition(world, ConditionType.READY).reason == "StorageTakenOver"
        assert not plan.moving


def test_the_owner_of_a_restored_root_stays_the_owner_in_later_records() -> None:
    known = {version: registration(version) for version in (0, 1, 2)}
    ours = former_store(channel=taken_over(), registrations=known)
    aborted = restored(store=ours, spec=restoring(rollout={"pin": 0}), deployment=observed().deployment)
    later = made(aborted).advance
    assert later is not None
    assert later.owner == taken_over().owner


def test_a_speculator_that_took_its_root_over_follows_no_later_record_of_a_stranger() -> None:
    """A bucket writer names another owner, as if the takeover were still to come."""
    forged = channel(2, epoch=7, previous=1).model_copy(
        update={"owner": RootOwner(id="99999999", namespace="x", name="y", since=NOW)}
    )
    once = SpeculatorStatus(active=VersionStatus(version=1))
    world = restored(store=former_store(channel=forged), status=once)
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
