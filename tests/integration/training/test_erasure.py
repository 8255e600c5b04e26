"""One tag is erased from a real S3. The trainer is killed before each of its calls, and the store stays sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from aurora_runtime.request_privacy import tag_hash
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.erasure import TagErasure
from aurora_store import Keys, ObjectStore, Registry, StoreConfig
from aurora_store.objects import ObjectInfo
from tests.assets.s3 import S3, seaweedfs
from tests.check_store import check_store
from tests.unit.training import tiny

TAG = 5


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


def erasure(objects: ObjectStore) -> Any:
    return TagErasure(Registry(objects), 1, tag_hash(TAG), Retrier(), lambda message: None)


def others(registry: Registry) -> dict[str, list[int]]:
    """The traces without the tag, by shard. Every shard that has a manifest has its data."""
    return {
        key: [trace.request for trace in decode(registry.shard(key)[1]) if trace.tag != TAG]
        for key in registry.shard_keys(1)
    }


def test_a_kill_before_any_call_loses_no_other_trace_and_the_report_proves_the_erasure(s3: S3, tmp_path: Path) -> None:
    target = tiny.target(tmp_path / "target")
    for kill in range(12):
        config = s3.config(root=f"aurora/erasure-{kill}")
        registry = Registry(ObjectStore(config))
        open_lineage(registry, target, tiny.DRAFT_SPEC, utc_now)
        tiny.put_shard(registry, 0, [tiny.trace(0)])
        tiny.put_shard(registry, 1, [tagged(1), tiny.trace(2), tagged(3)])
        tiny.put_shard(registry, 2, [tagged(4)])
        before = others(registry)
        killed = False
        try:
            erasure(KilledStore(config, kill)).run()
        except KeyboardInterrupt:
            killed = True
            assert others(registry).items() <= before.items()
            assert check_store(config, timedelta(minutes=2)).violations == []
        report = erasure(ObjectStore(config)).run()
        assert (report.number, report.traces_removed, report.shards_rewritten) == (1, 3, 2)
        assert (report.shards_scanned, report.remaining_traces) == (3, 0)
        assert others(registry) == before
        assert all(trace.tag != TAG for key in before for trace in decode(registry.shard(key)[1]))
        assert registry.last_erasure_report(tag_hash(TAG)) == report
        assert list(registry.objects.list(Keys.ERASING)) == []
        assert check_store(config, timedelta(0)).violations == []
        if not killed:
            break
    assert not killed, "the last run was not interrupted"
    assert kill == 10, "the step and three writes for each of two shards, the report, and the end of the step"


def test_no_object_of_the_store_holds_the_tokens_of_the_erased_requests(s3: S3, tmp_path: Path) -> None:
    config = s3.config(root="aurora/tokens")
    registry = Registry(ObjectStore(config))
    open_lineage(registry, tiny.target(tmp_path / "target"), tiny.DRAFT_SPEC, utc_now)
    text = tagged(1).tokens.numpy().tobytes()

    def holders() -> list[ObjectInfo]:
        return [
            item
            for item in registry.objects.list_objects("")
            if text in registry.objects.get(item.key, max_bytes=1 << 30)
        ]

    tiny.put_shard(registry, 0, [tiny.trace(0), tagged(1), tiny.trace(2)])
    assert len(holders()) == 1
    erasure(registry.objects).run()
    assert holders() == []
