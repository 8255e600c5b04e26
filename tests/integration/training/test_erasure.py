"""One tag is erased from a real S3, also by a program that is killed before each of its writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from aurora_protocol.pod_settings import SETTINGS_VARIABLE, StoreSettings
from aurora_protocol.tag_hash import tag_hash
from aurora_runtime import tag_erasure
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.tag_erasure import Erased, TagErasure
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_store import Keys, ObjectStore, StoreConfig
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import ROOT_OWNER
from tests.check_store import check_store
from tests.unit.operator.worlds import channel
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

TAG = 5
MAX_WRITES = 12


class KilledStore(ObjectStore):
    """A real store whose client is killed before its n-th write."""

    def __init__(self, config: StoreConfig, writes: int) -> None:
        super().__init__(config)
        self.left = writes

    def _count(self) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1

    def put(self, key: str, data: bytes) -> None:
        self._count()
        super().put(key, data)

    def create(self, key: str, data: bytes) -> None:
        self._count()
        super().create(key, data)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server


def tagged(seed: int) -> RequestTrace:
    return replace(tiny.trace(seed), tag=TAG)


def others(registry: PodRegistry) -> dict[str, list[int]]:
    """The traces without the tag, by shard. Every shard that has a manifest has its data."""
    return {
        key: [trace.request for trace in decode(registry.shard(key)[1]) if trace.tag != TAG]
        for key in registry.list_shards(1).data_bytes
    }


def holders(registry: PodRegistry, text: bytes) -> list[str]:
    """The keys of the objects that hold ``text``."""
    found = registry.objects.list("")
    return [key for key in found if text in registry.objects.get(key, max_bytes=1 << 30)]


def run_program(s3: S3, config: StoreConfig, monkeypatch: pytest.MonkeyPatch, rig: TrainerRig) -> None:
    """Run ``aurora-erase`` as the Job does."""
    place = StoreSettings(
        owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=config.endpoint, region=config.region
    )
    monkeypatch.setenv(SETTINGS_VARIABLE, rig.settings.model_copy(update={"store": place}).to_variable())
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    tag_erasure.main([tag_hash(TAG)])


def test_nothing_of_the_tag_is_left_in_the_store_or_in_the_trainer_that_resumes(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = s3.config(root="aurora/default/chat-00e4a5e0")
    registry = PodRegistry(ObjectStore(config))
    rig = TrainerRig(tmp_path)
    rig.limits = replace(rig.limits, total_bytes=1 << 40, replay_bytes=1 << 30)
    rig.registry, rig.lineage = registry, open_lineage(registry, rig.target, tiny.DRAFT_SPEC, utc_now)
    registry.objects.create(Keys.channel(1), channel(0).to_json())
    trained = [seed for seed in range(40) if not tiny.trace(seed).held_out][:4]
    held_out = [seed for seed in range(40) if tiny.trace(seed).held_out][:2]
    gone, stays = (trained[0], trained[1], held_out[0]), (trained[2], trained[3], held_out[1])
    tiny.put_shard(registry, 0, [tagged(gone[0]), tiny.trace(stays[0]), tagged(gone[2])])
    tiny.put_shard(registry, 1, [tiny.trace(stays[1]), tagged(gone[1]), tiny.trace(stays[2])])
    former = rig.trainer(Traffic(registry, 0))
    former.run()
    assert registry.trainer_state_record() is not None
    before = others(registry)
    text_of = {seed: tiny.trace(seed).tokens.numpy().tobytes() for seed in (*gone, *stays)}
    assert all(len(holders(registry, text)) == 1 for text in text_of.values())

    run_program(s3, config, monkeypatch, rig)
    assert "erased 3 requests from 2 shards; none is left in 2 shards" in capsys.readouterr().out
    assert all(holders(registry, text_of[seed]) == [] for seed in gone)
    assert all(len(holders(registry, text_of[seed])) == 1 for seed in stays)
    assert others(registry) == before
    assert check_store(config, timedelta(0)).violations == []
    run_program(s3, config, monkeypatch, rig)
    assert "erased 0 requests from 0 shards; none is left in 2 shards" in capsys.readouterr().out

    again = rig.trainer(Traffic(registry, 0))
    kept = [tiny.trace(seed).tokens.tolist() for seed in stays]
    remembered = [*again.learning.replay.examples(), *again.learning.held_out.newest_first()]
    assert len(again.learning.replay) * 2 == len(former.learning.replay)
    for example in remembered:
        assert any(str(example.tokens.tolist())[1:-1] in str(tokens) for tokens in kept)


def test_a_kill_before_any_write_loses_no_other_trace_and_the_next_run_converges(s3: S3, tmp_path: Path) -> None:
    target = tiny.target(tmp_path / "target")
    for kill in range(MAX_WRITES):
        config = s3.config(root=f"aurora/erasure-{kill}")
        registry = PodRegistry(ObjectStore(config))
        open_lineage(registry, target, tiny.DRAFT_SPEC, utc_now)
        tiny.put_shard(registry, 0, [tiny.trace(0)])
        tiny.put_shard(registry, 1, [tagged(1), tiny.trace(2), tagged(3)])
        tiny.put_shard(registry, 2, [tagged(4)])
        before = others(registry)
        killed = False
        try:
            TagErasure(PodRegistry(KilledStore(config, kill)), [TAG]).run()
        except KeyboardInterrupt:
            killed = True
            assert others(registry).items() <= before.items()
            assert check_store(config, timedelta(minutes=2)).violations == []
        TagErasure(registry, [TAG]).run()
        assert others(registry) == before
        assert all(trace.tag != TAG for key in before for trace in decode(registry.shard(key)[1]))
        assert TagErasure(registry, [TAG]).run() == Erased(scanned=3)
        assert check_store(config, timedelta(0)).violations == []
        if not killed:
            break
    assert not killed, "the last run was not interrupted"
    assert kill == 6, "three writes for each of two shards"
