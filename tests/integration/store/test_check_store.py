"""The store check finds damage, loss and unearned promotions, and reports nothing in a consistent store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, Lineage, TargetIdentity, TensorSpec
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys, ObjectStore
from tests.assets.s3 import S3
from tests.assets.signing import ROOT_OWNER
from tests.check_store import StoreCheck, check_store
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
