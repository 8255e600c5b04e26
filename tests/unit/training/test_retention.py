"""The store stays bounded, and whatever moment a kill chooses, nothing that anyone needs or names is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from aurora_api.pod import StoreSettings, TrainerSettings
from aurora_api.records import FileRef, TrainerState
from aurora_api.speculator import Target, Training
from aurora_runtime.errors import ObjectExists, StoreError
from aurora_runtime.store import Keys, Registry
from aurora_runtime.store.registry import StoredShards
from aurora_runtime.traces import encode
from aurora_runtime.training import main, saved, train
from aurora_runtime.training import retention as module
from aurora_runtime.training.janitor import Janitor
from aurora_runtime.training.ledger import Ledger
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.patience import Patience
from aurora_runtime.training.replay import Memory
from aurora_runtime.training.retention import BARE_S, Limits, Retention
from tests.unit.training import tiny
from tests.unit.training.test_store_side import SPEC

SHARD = len(encode([tiny.trace(0)]))


class Scene:
    """A trainer that learns nothing: it looks, consumes, saves and deletes in the order of the real one."""

    TRACE = tiny.trace(0)

    def __init__(self, limits: Limits, *, suspended: bool = False) -> None:
        self.registry, self.objects = tiny.memory_registry()
        self.limits, self.suspended = limits, suspended
        self.now = 0.0
        self.written: list[str] = []
        self.read: list[str] = []
        self.start()

    def start(self) -> None:
        """A trainer that resumes from the store."""
        state = self.registry.trainer_record()
        self.epoch = self.registry.trainer_epoch()
        self.ledger = Ledger(self.registry, 1, Patience(), state, clock=lambda: self.now)
        self.retention = Retention(
            self.registry, self.ledger, self.limits, suspended=self.suspended, clock=lambda: self.now
        )
        self.read = [key for key in self.written if key in self.ledger.consumed or key in self.ledger.retired]

    def put(self, count: int) -> None:
        for _ in range(count):
            self.written.append(tiny.put_shard(self.registry, len(self.written), [self.TRACE]))

    def learn(self) -> None:
        for key in self.retention.pending():
            self.read.append(key)
            self.ledger.consume(key)

    def save(self) -> None:
        data = b"state"
        digest = hashlib.sha256(data).hexdigest()
        file = FileRef(name=Keys.trainer_state_file(digest), sha256=digest, size=len(data))
        record = TrainerState(
            epoch=self.epoch + 1,
            lineage=1,
            step=0,
            trained_tokens=0,
            consumed=self.ledger.consumed,
            retired=self.ledger.retired,
            forgotten=self.ledger.forgotten,
            file=file,
            created=utc_now(),
        )
        self.registry.put_trainer_state(record, data)
        self.retention.saved(record)
        self.epoch += 1

    def turn(self, new: int = 0) -> None:
        self.put(new)
        self.learn()
        self.save()
        self.retention.tick()

    def there(self) -> list[str]:
        return list(self.registry.shard_keys(1))

    def is_sound(self) -> None:
        """Promise 4, and that every consumed shard is there."""
        keys = set(self.objects.data)
        states = [
            TrainerState.from_json(self.objects.data[k]) for k in sorted(keys) if k.startswith(Keys.TRAINER_STATE)
            and k.endswith(".json")
        ]  # fmt: skip
        for state in states:
            assert set(state.consumed) <= keys
            assert len(state.consumed) + len(state.retired) + state.forgotten <= len(self.written)
        explained = set(states[-1].retired) if states else set()
        for key in keys:
            if key.startswith(Keys.TRACES):
                manifest, data = (f"{key.rsplit('.', 1)[0]}{end}" for end in (".json", ".safetensors"))
                assert data in keys, "a manifest names data that are gone"
                assert manifest in keys or manifest in explained, "nothing names this"


ROOMY = Limits(total=6 * SHARD, replay=2 * SHARD, shards=100)


def test_the_oldest_consumed_shards_go_and_the_newest_stay() -> None:
    scene = Scene(ROOMY)
    for _ in range(20):
        scene.turn(1)
        scene.is_sound()
    assert scene.there() == scene.written[-len(scene.there()) :]
    assert 6 <= len(scene.there()) <= 9, "the bound, and what the saves have yet to settle"
    assert scene.read == scene.written, "each was learnt from once"
    assert scene.ledger.total == 20
    assert len(scene.ledger.consumed) <= 7


def test_nothing_goes_while_there_is_room() -> None:
    scene = Scene(ROOMY)
    for _ in range(6):
        scene.turn(1)
    assert scene.there() == scene.written
    assert scene.ledger.retired == ()


def test_a_consumed_shard_goes_only_when_every_stored_state_calls_it_retired() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.put(3)
    scene.learn()
    assert scene.ledger.retired == (scene.written[0],)
    assert scene.retention.tick() == 0
    scene.save()
    assert scene.retention.tick() == 0, "the state before this one still calls it consumed"
    scene.save()
    assert scene.retention.tick() == 1
    assert scene.written[0] not in scene.there()
    scene.save()
    record = scene.registry.trainer_record()
    assert record is not None
    assert (record.retired, record.forgotten, scene.ledger.total) == ((), 1, 7)


def test_a_kill_at_any_change_of_the_store_loses_and_doubles_nothing() -> None:
    def play(kill: int | None) -> int:
        """Five turns with a kill at the n-th change; how many changes there were."""
        scene = Scene(ROOMY)
        scene.turn(4)
        scene.turn(4)
        changes = 0
        real: Callable[[], None] = scene.objects._fail

        def count() -> None:
            nonlocal changes
            changes += 1
            real()

        scene.objects._fail = count  # type: ignore[method-assign]
        scene.objects.fail_at = kill
        for _ in range(5):
            try:
                scene.learn()
                scene.save()
                scene.retention.tick()
            except KeyboardInterrupt:
                scene.objects.fail_at = None
                scene.is_sound()
                scene.start()
            scene.is_sound()
        scene.objects.fail_at = None
        for _ in range(3):
            scene.turn(1)
            scene.is_sound()
        assert sorted(scene.read) == sorted(set(scene.read))
        assert set(scene.there()) <= set(scene.written[-9:])
        assert scene.ledger.total == len(scene.written)
        return changes

    changes = play(None)
    assert changes > 10
    for kill in range(changes):
        play(kill)


def test_a_backlog_that_has_no_room_goes_unread_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.put(12)
    pending = scene.retention.pending()
    assert pending == scene.written[-4:], "the newest"
    assert scene.retention.unread == 8
    assert "8 shards go unread" in caplog.text
    assert scene.retention.pending() == pending
    assert scene.retention.unread == 8, "counted once"
    assert scene.retention.tick() == 8
    assert len(scene.there()) == 8
    assert set(scene.ledger.consumed) == set(scene.written[2:4]), "replay keeps its share"
    assert scene.ledger.total == 4, "what was not read is not counted as consumed"
    scene.is_sound()


def test_while_training_is_suspended_traces_are_bounded_too() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.suspended = True
    scene.start()
    for _ in range(10):
        scene.put(1)
        scene.retention.pending()
        scene.retention.tick()
        scene.is_sound()
    assert set(scene.there()) == {*scene.written[:4], *scene.written[-2:]}, "no state is saved: consumed ones stay"
    scene.suspended = False
    scene.start()
    assert scene.retention.pending() == scene.written[-2:]


def test_the_number_of_shards_is_bounded_too() -> None:
    scene = Scene(replace(ROOMY, total=100 * SHARD, shards=10))
    for _ in range(20):
        scene.turn(1)
    assert len(scene.ledger.consumed) <= 10
    assert len(scene.there()) <= 13


def test_small_shards_are_not_fewer_than_one_per_mebibyte() -> None:
    assert Limits.of(64 << 30, 1 << 30).shards == 65536
    assert Limits.of(2 << 30, 1 << 30).shards == 4096


def test_the_bound_that_unread_shards_are_beyond_is_told(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Limits(total=100 << 30, replay=0, shards=8))
    scene.put(6)
    scene.retention.pending()
    assert "keepGibibytes allows 8 shards" in caplog.text
    scene.limits = Limits(total=3 << 29, replay=0, shards=100)
    scene.start()
    scene.ledger.size = lambda key: 1 << 30  # type: ignore[method-assign]
    scene.retention.pending()
    assert "keepGibibytes allows 1.5 GiB" in caplog.text


def test_a_suspended_trainer_that_learnt_nothing_keeps_as_many_as_may_be() -> None:
    scene = Scene(replace(ROOMY, total=100 * SHARD, shards=10), suspended=True)
    scene.put(12)
    assert scene.retention.pending() == scene.written[-10:]


def test_the_longer_a_look_takes_the_later_is_the_next() -> None:
    scene = Scene(ROOMY)
    real = scene.registry.stored_shards

    def slow(lineage: int) -> StoredShards:
        scene.now += 3.0
        return real(lineage)

    scene.registry.stored_shards = slow  # type: ignore[method-assign]
    scene.put(1)
    scene.learn()
    scene.put(1)
    scene.now += 59
    assert scene.retention.pending() == [], "and what was consumed meanwhile is not offered again"
    scene.now += 1
    assert scene.retention.pending() == scene.written[1:]


def test_deleting_is_done_in_portions_and_a_store_that_refuses_costs_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", 3)
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    assert [scene.retention.tick() for _ in range(4)] == [3, 3, 2, 0]
    scene.put(3)
    scene.retention.pending()
    real = scene.registry.delete_shard

    def refuse(key: str) -> NoReturn:
        raise StoreError("AccessDenied")

    monkeypatch.setattr(scene.registry, "delete_shard", refuse)
    assert scene.retention.tick() == 0
    monkeypatch.setattr(scene.registry, "delete_shard", real)
    assert scene.retention.tick() == 0, "not at once"
    scene.now += module.RETRY_S
    assert scene.retention.tick() == 3


def test_a_trainer_that_was_told_to_stop_deletes_nothing_more() -> None:
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    told = iter([False, False])
    assert scene.retention.tick(lambda: next(told, True)) == 2
    assert len(scene.there()) == 10
    for name in "ab":
        scene.objects.put(f"checkpoints/00000007-{name}/model.safetensors", b"half")
    assert Janitor(scene.registry, grace=0).tick(lambda: True) == 0


def test_the_trainer_passes_the_word_on(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(real.registry, 1)
    trainer = real.trainer(traffic)
    seen: list[bool] = []

    def tick(stopping: Callable[[], bool]) -> int:
        traffic.stop()
        seen.append(stopping())
        return 0

    monkeypatch.setattr(trainer.retention, "tick", tick)
    monkeypatch.setattr(trainer.janitor, "tick", tick)
    trainer.run()
    assert seen == [True, True]


def test_a_shard_that_cannot_be_deleted_blocks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(ROOMY)
    scene.put(12)
    scene.retention.pending()
    real, stuck = scene.objects.delete, scene.written[0]

    def delete(key: str) -> None:
        if key == stuck:
            raise StoreError("AccessDenied")
        real(key)

    monkeypatch.setattr(scene.objects, "delete", delete)
    assert scene.retention.tick() == 0
    scene.now += module.RETRY_S
    assert scene.retention.tick() == 7, "all but the one"
    monkeypatch.setattr(scene.objects, "delete", real)
    scene.now += module.RETRY_S
    assert scene.retention.tick() == 1
    assert scene.there() == scene.written[-4:]


def test_a_state_that_the_store_does_not_let_go_delays_saving_by_nothing_and_keeps_what_it_names(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(ROOMY)
    for _ in range(4):
        scene.turn(1)
    real = scene.objects.delete

    def refuse(key: str) -> NoReturn:
        raise StoreError(f"delete {key}: AccessDenied")

    monkeypatch.setattr(scene.objects, "delete", refuse)
    for _ in range(6):
        scene.turn(1)
    assert scene.registry.trainer_epoch() == 10
    assert len(scene.registry.trainer_epochs()) == 8
    assert "old trainer states stay" in caplog.text
    monkeypatch.setattr(scene.objects, "delete", real)
    scene.now += module.RETRY_S
    assert scene.retention.tick() == 0, "the state of epoch 3 names every shard"
    scene.turn(1)
    assert scene.registry.trainer_epochs() == [10, 11]
    scene.is_sound()
    scene.now += module.RETRY_S
    scene.turn(1)
    assert len(scene.there()) <= 8
    scene.is_sound()


def test_what_another_trainer_saved_has_a_say_too() -> None:
    scene = Scene(ROOMY)
    scene.turn(4)
    scene.save()
    other = Ledger(scene.registry, 1, Patience(), scene.registry.trainer_record())
    late = Retention(scene.registry, other, scene.limits, clock=lambda: scene.now)
    scene.put(3)
    for key in late.pending():
        other.consume(key)
    late.pending()
    assert other.retired == (scene.written[0],)
    record = scene.registry.trainer_record()
    assert record is not None
    late.saved(record.model_copy(update={"epoch": 1, "retired": other.retired}))
    assert late.tick() == 0, "the trainer of the newest epoch still calls it consumed"


def test_data_that_never_got_a_manifest_goes_after_a_long_while() -> None:
    scene = Scene(ROOMY)
    scene.put(1)
    left, slow = (f"traces/00000001/2026-01-01/05/pod-1-b-{seq:08d}.safetensors" for seq in range(2))
    scene.objects.put(left, b"left by a pod that ended")
    scene.objects.put(slow, b"under way")
    scene.retention.pending()
    scene.now += BARE_S - 1
    scene.objects.put(slow, b"under way")  # its agent tries again
    scene.retention.pending()
    assert scene.retention.tick() == 0
    scene.now += 1
    scene.retention.pending()
    assert scene.retention.tick() == 1
    assert left not in scene.objects.data
    assert slow in scene.objects.data
    assert scene.there() == scene.written


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_an_upload_that_goes_on_after_all_is_left_alone(looks: bool, finished: bool) -> None:
    scene = Scene(ROOMY)
    scene.put(1)
    (manifest,) = scene.written
    data = manifest.replace(".json", ".safetensors")
    whole = scene.objects.data[manifest]
    scene.objects.delete(manifest)
    scene.retention.pending()
    scene.now += BARE_S
    assert scene.retention.pending() == []
    scene.objects.put(data, scene.objects.data[data])
    if finished:
        scene.objects.create(manifest, whole)
    if looks:
        assert scene.retention.pending() == scene.written * finished
    scene.retention.tick()
    assert data in scene.objects.data
    assert scene.there() == scene.written * finished


class Traffic(Patience):
    """Each time the trainer has nothing to do a shard comes, until there were enough of them."""

    def __init__(self, registry: Registry, count: int, *, damaged: bool = False) -> None:
        super().__init__()
        self.registry, self.count, self.damaged = registry, count, damaged
        self.written: list[str] = []

    def sleep(self, seconds: float) -> None:
        if len(self.written) == self.count:
            self.stop()
            return
        traces = [tiny.trace(seed) for seed in range(3)]
        last = max((int(key[-13:-5]) for key in self.registry.shard_keys(1)), default=-1)
        self.written.append(tiny.put_shard(self.registry, last + 1, traces))
        if self.damaged:
            data = self.written[-1].replace(".json", ".safetensors")
            self.registry.objects.put(data, b"x" * len(encode(traces)))


class Real:
    """The real trainer, but for a store in memory and small limits; it saves between any two shards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        size = len(encode([tiny.trace(seed) for seed in range(3)]))
        monkeypatch.setattr(main, "limits_of", lambda _: Limits(6 * size, 2 * size, shards=100))
        monkeypatch.setattr(main, "REPLAY_BYTES", 2 * size)
        monkeypatch.setattr(train, "SAVE_S", 0.0)
        monkeypatch.setattr(train, "SAVE_SHARE", 1e9)
        monkeypatch.setattr(main, "Memory", lambda _: Memory(1 << 30))  # examples are larger than their shards
        self.registry, self.objects = tiny.memory_registry()
        self.target = tiny.target(folder)
        self.lineage = open_lineage(self.registry, self.target, SPEC, utc_now)
        self.settings = TrainerSettings(
            namespace="n",
            name="s",
            target=Target(model=str(folder)),
            draft=SPEC,
            training=Training(replay=0, publish_tokens=1 << 30, publish_seconds=86400),
            store=StoreSettings(bucket="b", root="r"),
        )

    def trainer(self, patience: Patience) -> train.Trainer:
        device = torch.device("cpu")
        return main.build(self.settings, self.registry, self.target, self.lineage, patience, device)


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Real:
    return Real(tmp_path, monkeypatch)


def test_shards_that_teach_nothing_are_saved_retired_and_deleted_too(real: Real) -> None:
    traffic = Traffic(real.registry, 14, damaged=True)
    trainer = real.trainer(traffic)
    trainer.run()
    assert trainer.session.steps == 0
    assert 6 <= len(list(real.registry.shard_keys(1))) <= 10
    again = real.trainer(Patience())
    assert again.ledger.total == 14
    assert again.retention.pending() == []


def damage_the_newest_state(real: Real, *, data: bool) -> int:
    """In its data or in its manifest; returns its epoch."""
    epoch = real.registry.trainer_epoch()
    key = Keys.trainer_state(epoch)
    if data:
        (key,) = real.objects.list(f"{key.removesuffix('.json')}/")
    real.objects.put(key, b"{}")
    return epoch


@pytest.mark.parametrize("data", [False, True])
def test_a_damaged_state_costs_what_it_alone_has_learnt_and_is_followed_by_higher_epochs(
    real: Real, data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = Traffic(real.registry, 4)
    real.trainer(first).run()
    before = real.registry.trainer_record(real.registry.trainer_epochs()[-2])
    assert before is not None
    damaged = damage_the_newest_state(real, data=data)
    again = real.trainer(Traffic(real.registry, 2))
    assert again.ledger.consumed == before.consumed == tuple(first.written[:3])
    assert again.session.steps == before.step
    assert f"epoch {damaged} is damaged" in caplog.text
    again.run()
    epochs = real.registry.trainer_epochs()
    assert epochs[0] > damaged
    assert again.ledger.total == len(set(real.registry.shard_keys(1))), "and what it had learnt is learnt anew"
    assert saved.read(real.registry, 1) is not None


def test_without_a_whole_state_the_trainer_starts_from_the_last_version(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    damaged = damage_the_newest_state(real, data=False)
    again = real.trainer(Traffic(real.registry, 1))
    assert again.ledger.consumed == ()
    again.run()
    assert real.registry.trainer_epoch() > damaged


def test_of_two_trainers_that_save_one_epoch_the_later_leaves_the_state_whole(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    winner, zombie = (real.trainer(Traffic(real.registry, 1)) for _ in range(2))
    winner.session.generator.manual_seed(7)
    winner.run()
    with pytest.raises(ObjectExists):
        zombie.run()
    kept = saved.read(real.registry, 1)
    assert kept is not None
    assert kept.record.epoch == winner.epoch
    for _ in range(2):
        real.trainer(Traffic(real.registry, 1)).run()
    names = {key.split("/")[2] for key in real.objects.list(Keys.TRAINER_STATE)}
    assert f"{winner.epoch:08d}" not in names, "the loser's data go with the epoch"


def test_a_suspended_trainer_deletes_as_long_as_there_is_something_to_delete(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PORTION", 2)
    for seq in range(14):
        tiny.put_shard(real.registry, seq, [tiny.trace(seed) for seed in range(3)])
    main.wait_suspended(real.settings, real.registry, real.lineage, Traffic(real.registry, 0))
    assert len(list(real.registry.shard_keys(1))) == 4


def test_the_replay_window_is_read_again_after_a_restart(real: Real) -> None:
    traffic = Traffic(real.registry, 9)
    real.trainer(traffic).run()
    again = real.trainer(Patience())
    newest = [again.reader.read(key) for key in traffic.written[-2:]]
    examples = [example for shard in newest if shard for example in shard.train]
    assert examples
    assert len(again.memory) == len(examples)
    assert len(again.held_out) == len({request for shard in newest if shard for request, _ in shard.held_out})


def test_what_did_not_change_is_not_saved_again(real: Real) -> None:
    real.trainer(Traffic(real.registry, 1)).run()
    epoch = real.registry.trainer_epoch()
    real.trainer(Traffic(real.registry, 0)).run()
    assert real.registry.trainer_epoch() == epoch


def test_the_trainer_itself_keeps_its_store_bounded(real: Real) -> None:
    registry = real.registry
    traffic = Traffic(registry, 14)
    real.trainer(traffic).run()
    left = list(registry.shard_keys(1))
    assert left == traffic.written[-len(left) :]
    assert 6 <= len(left) <= 10
    again = real.trainer(Patience())
    assert again.ledger.total == 14
    assert again.retention.pending() == []
    status = registry.trainer_status()
    assert status is not None
    assert status.shards == 14, "what was deleted was consumed all the same"
