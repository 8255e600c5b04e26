"""A root is taken over only if the spec asks for it and the lineage fits. A speculator that lost its root stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.observe.observed import Observed, StoreView
from aurora_operator.plan.rest import trainer_replicas
from aurora_protocol.draft_records import Channel, ChannelReason, InitialHead, RootOwner
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


def taken_over(by: str = OURS, *former: str) -> Channel:
    first = made(restored()).advance
    assert first is not None
    assert first.owner is not None
    return first.model_copy(
        update={"owner": first.owner.model_copy(update={"id": by}), "former_owners": ("99999999", *former)}
    )


def test_the_takeover_is_the_next_record_of_the_channel_and_changes_no_version() -> None:
    plan = made(restored())
    taken = plan.advance
    assert taken is not None
    assert (taken.epoch, taken.active, taken.previous, taken.rejected) == (6, 1, 0, (2,))
    assert taken.reason is ChannelReason.RESTORED
    assert taken.owner == RootOwner(id=OURS, namespace="team", name="chat", since=NOW)
    assert taken.former_owners == ("99999999",)
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


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": {"model": "org/other"}}, "target.model is org/model in the store and org/other in the spec"),
        ({"draft": {"vocabSize": 256}}, ""),
    ],
)
def test_another_target_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    world = restored(spec=restoring(**changed))
    assert (made(world).advance is None) is bool(words)
    if words:
        shown = condition(world, ConditionType.STORAGE_READY)
        assert shown.reason == "RestoreRefused"
        assert words in shown.message
        assert not made(world).moving, "nothing but a person can change the outcome"


def test_another_architecture_or_vocabulary_is_refused_in_words() -> None:
    other = lineage().model_copy(update={"architecture": "MEDUSA", "draft_vocab_size": 8})
    message = condition(restored(store=former_store(lineage=other)), ConditionType.STORAGE_READY).message
    assert "draft.architecture is MEDUSA in the store and EAGLE3 in the spec" in message
    assert "draft.vocabSize is 8 in the store and 16 in the spec" in message


@pytest.mark.parametrize(
    ("stored", "named", "words"),
    [
        ("org/head", "org/head", ""),
        ("org/head", "org/other", "draft.initial.model is org/head in the store and org/other in the spec"),
        ("org/head", None, "draft.initial.model is org/head in the store and unset in the spec"),
        (None, "org/head", "draft.initial.model is unset in the store and org/head in the spec"),
    ],
)
def test_a_lineage_that_began_with_another_head_is_refused_in_words(
    stored: str | None, named: str | None, words: str
) -> None:
    head = InitialHead(model=stored, sha256="0" * 64) if stored else None
    size = 8 if head else 16  # a head brings its own vocabulary map
    began = lineage().model_copy(update={"initial": head, "draft_vocab_size": size})
    initial = {"initial": {"model": named}} if named else {}
    world = restored(
        store=former_store(lineage=began), spec=restoring(draft={"vocabSize": 256, **initial}), deployment=None
    )
    assert (made(world).advance is None) is bool(words)
    assert words in condition(world, ConditionType.STORAGE_READY).message


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
    passed = (evidence(1),)
    worlds = [
        observed(store=store(0, 1, channel=taken_over("55555555", OURS), evidence=passed)),
        restored(store=former_store(channel=taken_over("55555555", OURS)), deployment=observed().deployment),
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


def test_the_trainer_of_a_lost_root_stays_stopped_while_the_store_cannot_be_read() -> None:
    lost = observed(store=store(0, 1, channel=taken_over("55555555", OURS)))
    away = replace(lost, store=StoreView(reason="Unreachable", error="no route"), status=status(lost))
    assert condition(away, ConditionType.TRAINER_READY).reason == "TakenOver"
    later = replace(away, status=status(away))
    assert {c.reason for c in later.status.conditions} >= {"TakenOver", "Unreachable"}, (
        "only TrainerReady tells that the root is lost"
    )
    assert (trainer_replicas(away), trainer_replicas(later), made(later).status) == (0, 0, None)
    assert trainer_replicas(replace(later, store=store(0, 1))) == 1, "a reading says otherwise"
    assert trainer_replicas(replace(later, status=SpeculatorStatus())) == 1, "nothing tells that this root is lost"


def test_the_owner_of_a_restored_root_stays_the_owner_in_later_records() -> None:
    known = {version: registration(version) for version in (0, 1, 2)}
    ours = former_store(channel=taken_over(), registrations=known)
    aborted = restored(store=ours, spec=restoring(rollout={"pin": 0}), deployment=observed().deployment)
    later = made(aborted).advance
    assert later is not None
    assert later.owner == taken_over().owner
    assert later.former_owners == ("99999999",)


def test_a_speculator_that_took_its_root_over_follows_no_later_record_of_a_stranger() -> None:
    """A bucket writer names another owner that never lost the root to us, as if the takeover were still to come."""
    forged = channel(2, epoch=7, previous=1).model_copy(
        update={"owner": RootOwner(id="99999999", namespace="x", name="y", since=NOW), "former_owners": ()}
    )
    once = SpeculatorStatus(active=VersionStatus(version=1))
    world = restored(store=former_store(channel=forged), status=once)
    assert made(world).advance is None
    told = condition(world, ConditionType.STORAGE_READY)
    assert told.reason == "InvalidRecord"
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
