"""The store on a real S3 server. Promise 4 ("Durable") rests on these assertions."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, FileRef, Lineage, TargetIdentity, TensorSpec
from aurora_protocol.training_records import ShardManifest, TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys, ObjectStore, objects
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, StoreError, StoreUnsupported
from aurora_store.objects import TRANSFER
from tests.assets.s3 import S3, seaweedfs
from tests.assets.shards import put_shard_bytes
from tests.assets.signing import ROOT_OWNER
from tests.unit.fakes import SIZES

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ZERO = "0" * 64


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def store(s3: S3, request: pytest.FixtureRequest) -> ObjectStore:
    """A store with a root of its own."""
    return ObjectStore(s3.config(root=f"aurora/{request.node.name}"))


@pytest.fixture
def registry(store: ObjectStore) -> PodRegistry:
    return PodRegistry(store)


def lineage(number: int) -> Lineage:
    target = TargetIdentity(model="m", config_sha256=ZERO, tokenizer_sha256=ZERO, hidden_size=8, vocab_size=64)
    return Lineage(
        number=number,
        target=target,
        architecture="EAGLE3",
        draft_vocab_size=8,
        aux_layers=(1, 2, 3),
        tensors={"fc.weight": TensorSpec(shape=(8, 24), dtype="BF16")},
        draft_sizes=SIZES,
        created=NOW,
    )


def state(epoch: int, data: bytes) -> TrainerState:
    file = FileRef(name=Keys.trainer_state_file(sha(data)), sha256=sha(data), size=len(data))
    return TrainerState(epoch=epoch, lineage=1, step=epoch, trained_tokens=0, consumed=(), file=file, created=NOW)


def shard(seq: int, data: bytes, name: str) -> ShardManifest:
    return ShardManifest(
        lineage=1,
        pod="pod-0",
        boot="ab",
        seq=seq,
        file=FileRef(name=name, sha256=sha(data), size=len(data)),
        requests=1,
        tokens=1,
        answer_tokens=1,
        rounds=1,
        proposed=1,
        accepted=0,
        dropped_records=0,
        created=NOW,
    )


def test_a_race_to_create_has_one_winner(store: ObjectStore) -> None:
    for turn in range(5):
        key = f"channel/{turn}"

        def attempt(number: int, key: str = key) -> int | None:
            try:
                store.create(key, str(number).encode())
            except ObjectExists:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(attempt, range(8)) if number is not None]
        assert len(winners) == 1
        assert store.get(key) == str(winners[0]).encode()


def test_creating_the_same_bytes_again_succeeds(store: ObjectStore) -> None:
    store.create("registry/1", b"same")
    store.create("registry/1", b"same")
    with pytest.raises(ObjectExists):
        store.create("registry/1", b"other")
    assert store.get("registry/1") == b"same"


def test_data_that_differs_from_its_digest_is_never_returned(store: ObjectStore, tmp_path: Path) -> None:
    store.put("data", b"damaged")
    with pytest.raises(DigestMismatch):
        store.get("data", sha(b"intact"))
    with pytest.raises(DigestMismatch):
        store.download("data", tmp_path / "file", sha(b"intact"), max_bytes=100)
    assert list(tmp_path.iterdir()) == [], "a damaged download leaves nothing behind"
    store.download("data", tmp_path / "file", sha(b"damaged"), max_bytes=100)
    assert (tmp_path / "file").read_bytes() == b"damaged"


def test_a_large_file_is_uploaded_in_parts_and_downloaded_intact(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 80_000  # 20 MB: multipart
    (tmp_path / "up").write_bytes(data)
    store.upload("large", tmp_path / "up")
    store.download("large", tmp_path / "down", sha(data), max_bytes=len(data))
    assert (tmp_path / "down").read_bytes() == data


def test_an_object_beyond_the_limit_of_one_request_is_put_in_parts(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (TRANSFER.multipart_threshold // 256 + 1)
    monkeypatch.setattr(objects, "MAX_SINGLE_PUT_BYTES", 1 << 20)
    store.put("large", data)
    assert store.get("large", sha(data), max_bytes=len(data)) == data
    head = store._s3.head_object(Bucket=store.config.bucket, Key=f"{store.config.root}/large")
    assert head["ETag"].strip('"').endswith("-2"), "two parts"


def test_a_listing_is_ordered_and_can_start_after_a_key(store: ObjectStore) -> None:
    keys = [Keys.channel(number) for number in (1, 2, 9, 10, 11, 100)]
    for key in reversed(keys):
        store.put(key, b"x")
    store.put("channels-other/1", b"x")
    assert list(store.list(Keys.CHANNEL)) == keys
    assert list(store.list(Keys.CHANNEL, after=keys[2])) == keys[3:]
    assert list(store.list("nothing/")) == []


def test_reading_a_missing_object_is_an_error_and_deleting_it_is_none(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing):
        store.get("nowhere")
    with pytest.raises(ObjectMissing):
        store.download("nowhere", tmp_path / "x", ZERO, max_bytes=100)
    store.delete("nowhere")


def test_a_range_has_what_there_is_of_it(store: ObjectStore) -> None:
    store.put("short", b"abc")
    store.put("empty", b"")
    found = [store.get_range("short", first, 5) for first in (0, 2, 3, 9)]
    assert found == [b"abc", b"c", b"", b""]
    assert store.get_range("short", 1, 0) == b""
    assert store.get_range("empty", 0, 5) == b""
    with pytest.raises(ObjectMissing):
        store.get_range("missing", 9, 5)


def test_the_probe_passes_and_leaves_nothing(store: ObjectStore) -> None:
    store.probe()
    assert list(store.list("")) == []


def test_a_store_without_conditional_writes_is_refused(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "create", store.put)
    with pytest.raises(StoreUnsupported, match="If-None-Match"):
        store.probe()
    assert list(store.list("")) == []


def test_a_repeated_write_of_a_shard_is_harmless_and_a_read_verifies_the_data(registry: PodRegistry) -> None:
    name = Keys.shard(1, "pod-0", "ab", 3, NOW).rsplit("/", 1)[1] + ".safetensors"
    key = put_shard_bytes(registry, shard(3, b"tensors", name), b"tensors")
    assert put_shard_bytes(registry, shard(3, b"tensors", name), b"tensors") == key, "a retry is harmless"
    assert list(registry.list_shards(1).data_bytes) == [key]
    assert registry.shard(key) == (shard(3, b"tensors", name), b"tensors")
    registry.objects.put(key.replace(".json", ".safetensors"), b"damaged")
    with pytest.raises(DigestMismatch):
        registry.shard(key)


def test_the_newest_shards_are_found_by_the_stores_clock_and_not_by_their_names(registry: PodRegistry) -> None:
    """A restarted engine counts from 0 again, beside shards with higher numbers of the same hour."""
    written = []
    for boot, seq in (("old", 41), ("old", 42), ("new", 0)):
        name = Keys.shard(1, "pod-0", boot, seq, NOW).rsplit("/", 1)[1] + ".safetensors"
        written.append(put_shard_bytes(registry, shard(seq, b"tensors", name), b"tensors"))
        time.sleep(1.1)  # the clock's grain
    assert registry.newest_shards(1, 2) == [written[2], written[1]]


def test_the_highest_number_wins(registry: PodRegistry) -> None:
    assert registry.channel() is None
    assert registry.lineage() is None
    for epoch in (1, 2, 10):
        registry.advance_channel(
            Channel(owner=ROOT_OWNER, epoch=epoch, lineage=1, active=epoch, reason=ChannelReason.PROMOTED, created=NOW)
        )
    current = registry.channel()
    assert current is not None
    assert current.epoch == 10
    with pytest.raises(ObjectExists):
        registry.advance_channel(
            Channel(owner=ROOT_OWNER, epoch=10, lineage=1, active=3, reason=ChannelReason.ROLLED_BACK, created=NOW)
        )
    registry.create_lineage(lineage(1))
    registry.create_lineage(lineage(2))
    assert registry.lineage() == lineage(2)


def test_old_trainer_states_are_deleted_and_the_newest_stays_readable(registry: PodRegistry) -> None:
    for epoch in range(1, 6):
        data = f"state {epoch}".encode()
        registry.put_trainer_state(state(epoch, data), data)
    assert registry.trainer_state() == (state(5, b"state 5"), b"state 5")
    left = sorted(registry.objects.list(Keys.TRAINER_STATE))  # SeaweedFS orders folders before files
    names = {epoch: Keys.trainer_state_file(sha(f"state {epoch}".encode())) for epoch in (4, 5)}
    stems = {epoch: Keys.trainer_state(epoch).removesuffix(".json") for epoch in names}
    assert left == sorted(name for e, stem in stems.items() for name in (f"{stem}.json", f"{stem}/{names[e]}"))


def test_refusals_are_readable_and_hold_no_credentials(s3: S3) -> None:
    wrong = {
        "check the secret key": replace(s3.config(), secret_key="wrong-secret-0123"),  # noqa: S106 - made up
        "check the access key": replace(s3.config(), access_key="wrong-access-0123"),
        "create the bucket": replace(s3.config(), bucket="no-such-bucket"),
    }
    for hint, config in wrong.items():
        with pytest.raises(StoreError, match=hint) as caught:
            list(ObjectStore(config).list(""))
        shown = f"{caught.value} {config!r}"
        for secret in (config.secret_key, config.access_key):
            assert secret is not None
            assert secret not in shown


def test_a_store_that_stops_raises_store_errors_and_recovers(tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "data") as server:
        config, port = server.config(), int(server.endpoint.rsplit(":", 1)[1])
        store = ObjectStore(config, attempts=2)
        store.ensure_bucket()
        store.put("kept", b"1")
    with pytest.raises(StoreError):
        store.get("kept")
    with seaweedfs(tmp_path / "data", port=port):
        deadline = time.monotonic() + 30
        while True:
            try:
                assert store.get("kept") == b"1"
                break
            except StoreError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
