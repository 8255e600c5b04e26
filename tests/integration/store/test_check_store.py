"""The store check finds every kind of damage, and reports none in a consistent store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, Lineage, TargetIdentity, TensorSpec
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys, ObjectStore
from tests.assets.s3 import S3
from tests.assets.signing import ROOT_OWNER
from tests.assets.trainer_output import put_trainer_state
from tests.check_store import StoreCheck, check_store, object_ages
from tests.integration.engine.validation_store import ZERO_DIGEST, put_traces, put_version, trace_of
from tests.unit.fakes import SIZES

NONE = timedelta(0)


@pytest.fixture
def registry(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> PodRegistry:
    """A consistent store: a lineage, two versions, a shard and a channel."""
    registry = PodRegistry(ObjectStore(s3.config(root=f"aurora/{request.node.name}")))
    target = TargetIdentity(
        model="m", config_sha256=ZERO_DIGEST, tokenizer_sha256=ZERO_DIGEST, hidden_size=8, vocab_size=64
    )
    now = datetime.now(UTC)
    registry.create_lineage(
        Lineage(
            number=1,
            target=target,
            architecture="EAGLE3",
            draft_vocab_size=8,
            aux_layers=(1, 2, 3),
            tensors={"fc.weight": TensorSpec(shape=(8, 24), dtype="BF16")},
            draft_sizes=SIZES,
            created=now,
        )
    )
    (tmp_path / "config.json").write_text("{}")
    for version in (0, 1):
        (tmp_path / "model.safetensors").write_bytes(b"weights %d" % version)
        put_version(registry, version, tmp_path)
    put_traces(registry, [trace_of([1, 2, 3])])
    registry.advance_channel(
        Channel(owner=ROOT_OWNER, epoch=1, lineage=1, active=0, reason=ChannelReason.INITIAL, created=now)
    )
    return registry


def audit(registry: PodRegistry, grace: timedelta = NONE) -> StoreCheck:
    return check_store(registry.objects.config, grace)


def test_a_consistent_store_has_no_violation(registry: PodRegistry) -> None:
    result = audit(registry)
    assert result.violations == []
    assert result.in_flight == []
    assert dict(result.counts) | {"bytes": 0} == {
        "lineage": 1, "registration": 2, "channel": 1, "checkpoint": 2, "shard": 1, "data": 5, "bytes": 0,
    }  # fmt: skip


def test_unnamed_data_is_in_flight_while_young_and_a_violation_later(registry: PodRegistry) -> None:
    registry.objects.put("traces/00000001/x.safetensors", b"1")
    young = audit(registry, timedelta(minutes=5))
    assert (young.violations, young.in_flight) == ([], ["traces/00000001/x.safetensors"])
    assert audit(registry).violations == ["traces/00000001/x.safetensors: no record names this object"]


def test_damage_and_loss_are_found(registry: PodRegistry) -> None:
    (shard,) = [k for k in registry.objects.list(Keys.TRACES) if k.endswith(".safetensors")]
    registry.objects.put(shard, b"damaged")
    registry.objects.delete(f"{registry.registration(1).checkpoint}model.safetensors")
    violations = "\n".join(audit(registry).violations)
    assert "digest differs" in violations
    assert "model.safetensors, which is missing" in violations


def test_a_retired_shard_may_be_missing_in_whole_or_in_part(registry: PodRegistry) -> None:
    (shard,) = registry.list_shards(1).data_bytes
    put_trainer_state(registry, retired=(shard,))
    assert audit(registry).violations == []
    registry.objects.delete(shard)
    assert audit(registry).violations == [], "a trainer that dies here deletes the data later"
    registry.delete_shard(shard)
    assert audit(registry).violations == []


def test_the_data_of_a_trainer_that_lost_the_race_for_an_epoch_is_in_flight_while_the_epoch_exists(
    registry: PodRegistry,
) -> None:
    put_trainer_state(registry)
    lost = f"{Keys.trainer_state(1).removesuffix('.json')}/{Keys.trainer_state_file('0' * 64)}"
    registry.objects.put(lost, b"another state")
    beside = audit(registry)
    assert (beside.violations, beside.in_flight) == ([], [lost])
    for _ in range(2):
        put_trainer_state(registry)
    assert (audit(registry).violations, audit(registry).in_flight) == ([], [])
    registry.objects.put(lost, b"another state")
    assert audit(registry).violations == [f"{lost}: no record names this object"]


def test_a_missing_consumed_shard_is_found(registry: PodRegistry) -> None:
    (shard,) = registry.list_shards(1).data_bytes
    put_trainer_state(registry, consumed=(shard,))
    assert audit(registry).violations == []
    registry.delete_shard(shard)
    assert "consumed" in "\n".join(audit(registry).violations)


def test_a_manifest_without_its_data_is_found_even_for_a_retired_shard(registry: PodRegistry) -> None:
    (shard,) = registry.list_shards(1).data_bytes
    put_trainer_state(registry, retired=(shard,))
    registry.objects.delete(shard.replace(".json", ".safetensors"))
    assert "which is missing" in "\n".join(audit(registry).violations)


def test_a_shard_that_the_trainer_deletes_during_the_audit_is_no_violation(registry: PodRegistry) -> None:
    (shard,) = registry.list_shards(1).data_bytes
    config = registry.objects.config
    seen = object_ages(config)
    registry.delete_shard(shard)
    late = StoreCheck(ObjectStore(config), seen, NONE)
    late.run()
    assert late.violations == []


def test_gaps_and_unearned_promotions_are_found(registry: PodRegistry) -> None:
    registry.advance_channel(
        Channel(
            owner=ROOT_OWNER,
            epoch=3,
            lineage=1,
            active=7,
            previous=0,
            reason=ChannelReason.PROMOTED,
            created=datetime.now(UTC),
        )
    )
    violations = "\n".join(audit(registry).violations)
    assert "channel epoch numbers are [1, 3]" in violations
    assert "version 7 is not registered" in violations
    assert "the store has no evidence for this promotion" in violations


def test_an_invalid_record_is_reported_and_the_check_goes_on(registry: PodRegistry) -> None:
    registry.objects.put(Keys.evidence(1, 1), b"{}")
    assert any("Evidence" in violation for violation in audit(registry).violations)
