"""A shard that the store alone refuses does not stop learning, and an outage costs no shard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_runtime.errors import Interrupted, ShardRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.data.patient_shard_reads import MAX_REFUSED_SECONDS, PatientShardReads
from aurora_runtime.training.retry import Retrier
from aurora_store.errors import ObjectArchived, ObjectRefused, StoreError
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

STEP_SECONDS = 30.0


class RefusingObjects(tiny.MemoryObjects):
    """Refuses to read the objects in ``refused``, each with its error. ``down``: no call succeeds."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[str, StoreError] = {}
        self.down = False
        self.reads = 0

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        self.reads += 1
        if self.down:
            raise StoreError("the store is down")
        if key in self.refused:
            raise self.refused[key]
        return super().get(key, sha256, max_bytes=max_bytes)

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        if self.down:
            raise StoreError("the store is down")
        return super().list_objects(prefix, after=after, limit=limit)

    def refuse(self, manifest_key: str, error: StoreError) -> None:
        self.refused[manifest_key.replace(".json", ".safetensors")] = error


class Waits(Retrier):
    """Waits no time. Each wait passes ``STEP_SECONDS`` of the clock. Stops after ``limit`` waits."""

    def __init__(self, limit: int = 100) -> None:
        super().__init__()
        self.now, self.waits, self.limit = 0.0, 0, limit
        self._stop.wait = self._wait  # type: ignore[method-assign]

    def _wait(self, timeout: float | None = None) -> bool:
        self.now += STEP_SECONDS
        self.waits += 1
        if self.waits >= self.limit:
            self.stop()
        return self.stopping

    def clock(self) -> float:
        return self.now


@pytest.fixture
def objects() -> RefusingObjects:
    return RefusingObjects()


@pytest.fixture
def keys(objects: RefusingObjects) -> list[str]:
    return [tiny.put_shard(PodRegistry(objects), number, [tiny.trace(number)]) for number in range(3)]


def reads_of(objects: RefusingObjects, retrier: Waits) -> PatientShardReads:
    return PatientShardReads(PodRegistry(objects), retrier, clock=retrier.clock)


def test_a_shard_that_the_store_alone_refuses_is_given_up_after_minutes_and_the_next_ones_sooner(
    objects: RefusingObjects, keys: list[str]
) -> None:
    for key in keys[:2]:
        objects.refuse(key, ObjectRefused("AccessDenied"))
    retrier = Waits()
    reads = reads_of(objects, retrier)
    with pytest.raises(ShardRefused, match=r"refused it for 180 s.*AccessDenied"):
        reads.read(keys[0])
    assert retrier.now == MAX_REFUSED_SECONDS
    with pytest.raises(ShardRefused):
        reads.read(keys[1])
    assert retrier.now == MAX_REFUSED_SECONDS + STEP_SECONDS
    assert reads.read(keys[2])


def test_no_shard_is_given_up_when_the_store_refuses_all(objects: RefusingObjects, keys: list[str]) -> None:
    """A key of the bucket that is disabled refuses every shard, although the store lists them."""
    for key in keys:
        objects.refuse(key, ObjectRefused("KMS.DisabledException"))
    with pytest.raises(Interrupted):
        reads_of(objects, Waits()).read(keys[0])


def test_a_shard_that_a_slow_store_does_not_give_is_waited_for(objects: RefusingObjects, keys: list[str]) -> None:
    """Small answers arrive, and whole shards do not."""
    objects.refuse(keys[0], StoreError("get x: ReadTimeoutError"))
    with pytest.raises(Interrupted):
        reads_of(objects, Waits()).read(keys[0])


def test_the_time_of_an_outage_does_not_count(objects: RefusingObjects, keys: list[str]) -> None:
    """The store may come back just between the read of the shard and that of another."""

    class Outage(Waits):
        def _wait(self, timeout: float | None = None) -> bool:
            objects.down = self.waits < 50
            if not objects.down and self.waits > 53:
                objects.refused.clear()
            return super()._wait(timeout)

    objects.refuse(keys[0], ObjectRefused("AccessDenied"))
    objects.down = True
    retrier = Outage()
    assert reads_of(objects, retrier).read(keys[0])
    assert retrier.waits == 55


@pytest.mark.parametrize("restart", [False, True], ids=["the first trainer", "a restart that replays the shard"])
def test_learning_goes_on_beside_an_archived_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, restart: bool
) -> None:
    rig = TrainerRig(tmp_path)
    objects = RefusingObjects()
    objects.data, objects.written = rig.objects.data, rig.objects.written
    rig.registry.objects = objects
    archived, good = (tiny.put_shard(rig.registry, number, [tiny.trace(number)]) for number in range(2))
    if restart:
        rig.trainer(Traffic(rig.registry, 0)).run()
    objects.refuse(archived, ObjectArchived("get x: InvalidObjectState; restore the object"))
    trainer = rig.trainer(Traffic(rig.registry, 1))
    trainer.run()
    assert trainer.learning.ledger.consumed[:2] == (archived, good)
    assert trainer.learning.ledger.total == 3
    assert trainer.stages.reader.damaged == 1
    assert f"shard {archived} cannot be read and is skipped (1 so far): get x: InvalidObjectState" in caplog.text
