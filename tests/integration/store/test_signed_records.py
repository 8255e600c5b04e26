"""A bucket writer puts records of the channel and evidence into a real S3. Operator and pods follow none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus, VersionStatus
from aurora_operator.children.metadata import Owner
from aurora_operator.plan import Plan, plan
from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.main import find_active_draft
from aurora_store import Keys, ObjectStore, StoreConfig
from tests.assets.s3 import S3
from tests.assets.signing import KEYS, secret_data
from tests.integration.operator.store_rig import BUCKET, Speculator
from tests.unit.operator.worlds import CONFIG, channel, digest, evidence, lineage, observed, registration, root_owner

OTHER_KEYS = dict.fromkeys(KeyName, b"a key that the bucket writer made up")


@pytest.fixture
def owner(request: pytest.FixtureRequest) -> Owner:
    number = f"{abs(hash(request.node.name)):016x}"
    return Owner(f"team-{number}", "chat", number, 1, "77")


@pytest.fixture
def speculator(s3: S3, owner: Owner) -> Speculator:
    """Versions 0 to 2, of which 1 is active."""
    made = Speculator(s3, owner)
    registry = made.registry(s3)
    registry.objects.ensure_bucket()
    registry.create_lineage(lineage())
    for version in range(3):
        registry.register(registration(version))
    registry.advance_channel(channel(0, owner=root_owner(owner)))
    registry.advance_channel(with_weights(channel(1, epoch=2, previous=0, owner=root_owner(owner))))
    return made


def with_weights(made: Channel) -> Channel:
    return made.model_copy(update={"active_digest": digest(made.active)})


def unsigned(registry: PodRegistry) -> PodRegistry:
    return PodRegistry(registry.objects)


def decided(speculator: Speculator, store: object) -> Plan:
    followed = SpeculatorStatus(active=VersionStatus(version=1))
    given = observed(owner=speculator.owner, spec=speculator.spec, store=store, status=followed)
    return plan(given, CONFIG, datetime.now(UTC))


def next_of(speculator: Speculator) -> Channel:
    """A record that makes version 2 active."""
    return channel(2, epoch=3, previous=1, owner=root_owner(speculator.owner))


def write_unsigned(s3: S3, speculator: Speculator) -> None:
    unsigned(speculator.registry(s3)).advance_channel(next_of(speculator))


def write_with_own_key(s3: S3, speculator: Speculator) -> None:
    PodRegistry(speculator.registry(s3).objects, OTHER_KEYS).advance_channel(next_of(speculator))


def copy_an_older_record(s3: S3, speculator: Speculator) -> None:
    objects = speculator.registry(s3).objects
    record = json.loads(objects.get(Keys.channel(1))) | {"epoch": 3}
    objects.put(Keys.channel(3), json.dumps(record).encode())


def copy_an_older_record_unchanged(s3: S3, speculator: Speculator) -> None:
    objects = speculator.registry(s3).objects
    objects.put(Keys.channel(3), objects.get(Keys.channel(1)))


def copy_the_record_of_another_speculator(s3: S3, speculator: Speculator) -> None:
    """Signed with the same key here, so that only the root differs."""
    other = Speculator(s3, replace(speculator.owner, name="other")).registry(s3)
    other.advance_channel(next_of(speculator))
    speculator.registry(s3).objects.put(Keys.channel(3), other.objects.get(Keys.channel(3)))


@pytest.mark.parametrize(
    "attack",
    [
        write_unsigned,
        write_with_own_key,
        copy_an_older_record,
        copy_an_older_record_unchanged,
        copy_the_record_of_another_speculator,
    ],
)
async def test_a_channel_record_that_the_operator_did_not_sign_is_named_and_nobody_follows_it(
    s3: S3, speculator: Speculator, attack: Callable[[S3, Speculator], None]
) -> None:
    attack(s3, speculator)
    view = await speculator.look()
    assert (view.reason, view.channel) == ("InvalidRecord", None)
    assert Keys.channel(3) in view.error
    assert decided(speculator, view).advance is None
    registry = speculator.registry(s3)
    found = find_active_draft(registry)
    assert not isinstance(found, str)
    assert found[1].version == 1, "a starting pod takes the version that the operator signed"
    registry.objects.delete(Keys.channel(3))
    view = await speculator.look(60)
    assert view.channel is not None
    assert (view.error, view.channel.active) == ("", 1)


async def test_a_pod_starts_with_no_version_of_an_unsigned_channel(s3: S3, speculator: Speculator) -> None:
    registry = speculator.registry(s3)
    for epoch in (1, 2):
        registry.objects.delete(Keys.channel(epoch))
    assert "the operator to write the channel's first record" in str(find_active_draft(registry))
    unsigned(registry).advance_channel(channel(2))
    with pytest.raises(UnsignedRecord, match=r"channel/00000001\.json"):
        find_active_draft(registry)
    with pytest.raises(UnsignedRecord, match="channel-key"):
        find_active_draft(unsigned(registry))


async def test_weights_that_replace_those_of_the_active_version_are_named_and_not_served(
    s3: S3, speculator: Speculator
) -> None:
    registry = speculator.registry(s3)
    registry.objects.put(Keys.registration(1), registration(1).model_copy(update={"digest": digest(7)}).to_json())
    with pytest.raises(InvalidRecord, match=r"registry/00000001\.json names other weights"):
        find_active_draft(registry)
    view = await speculator.look()
    assert view.reason == "InvalidRecord"
    assert "registry/00000001.json names other weights" in view.error


async def test_complete_evidence_that_no_validator_signed_promotes_nothing(s3: S3, speculator: Speculator) -> None:
    registry = speculator.registry(s3)
    honest = evidence(2, active=1)
    other = PodRegistry(registry.objects, OTHER_KEYS)
    unsigned(registry).put_evidence(honest)
    other.put_evidence(honest.model_copy(update={"attempt": 2}))
    signed = json.loads(registry.objects.get(registry.put_evidence(evidence(1, active=0))))
    moved = json.loads(honest.model_copy(update={"attempt": 3}).to_json()) | {"signature": signed["signature"]}
    registry.objects.put(Keys.evidence(2, 3), json.dumps(moved).encode())
    view = await speculator.look()
    assert [(one.attempt, one.verdict.kind) for one in view.evidence_of(2)] == [
        (attempt, VerdictKind.INCONCLUSIVE) for attempt in (1, 2, 3)
    ]
    assert view.promotion_evidence(2) is None
    assert not view.may_be_pinned(2)
    assert "evidence/00000002/00000001.json does not count" in view.evidence_of(2)[0].verdict.reasons[0]
    registry.put_evidence(honest.model_copy(update={"attempt": 4}))
    assert (await speculator.look(120)).promotion_evidence(2) is not None


async def test_keys_that_somebody_removed_decide_nothing_and_are_named(s3: S3, speculator: Speculator) -> None:
    speculator.api.signing = secret_data() | {"channel-key": ""}
    view = await speculator.look()
    assert view.reason == "SigningKeysMissing"
    assert "the Secret chat-keys is not the one that the operator made" in view.error
    assert all(key.decode() not in view.error for key in KEYS.values())


async def test_a_record_that_pretends_a_takeover_stops_the_operator_until_it_is_removed(
    s3: S3, speculator: Speculator
) -> None:
    registry = speculator.registry(s3)
    thief = RootOwner(id="99999999", namespace="x", name="y", since=datetime.now(UTC))
    taken = channel(2, epoch=3, previous=1, owner=thief).model_copy(update={"reason": ChannelReason.RESTORED})
    unsigned(registry).advance_channel(taken)
    view = await speculator.look()
    made = decided(speculator, view)
    assert made.advance is None
    assert made.status is not None
    storage = next(one for one in made.status.conditions if one.type == "StorageReady")
    assert storage.reason == "TakenOver"
    assert Keys.channel(3) in storage.message
    found = find_active_draft(registry)
    assert not isinstance(found, str)
    assert found[1].version == 1
    registry.objects.delete(Keys.channel(3))
    speculator.access.read_next()
    view = await speculator.look()
    assert view.channel is not None
    assert view.channel.epoch == 2


def test_a_store_config_of_another_bucket_is_the_same_place(s3: S3, speculator: Speculator) -> None:
    """A person may copy a root to another bucket. The root names the speculator, so nothing else is confused."""
    objects = speculator.registry(s3).objects
    place = StoreConfig("another", objects.config.root, s3.endpoint, None, s3.access_key, s3.secret_key)
    copy = ObjectStore(place)
    copy.ensure_bucket()
    for key in (Keys.channel(1), Keys.channel(2)):
        copy.put(key, objects.get(key))
    found = PodRegistry(copy, KEYS).signed_channel()
    assert found is not None
    assert found.epoch == 2
    assert objects.config.bucket == BUCKET
