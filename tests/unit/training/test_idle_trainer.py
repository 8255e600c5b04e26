"""A trainer without traffic asks the store seldom, and looks often again as soon as something arrives."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.observe.observed import TRAINER_SILENCE
from aurora_operator.observe.store.store_access import REST_SECONDS
from aurora_protocol.training_records import TrainerStatus
from aurora_runtime.pod_registry import ShardListing
from aurora_runtime.training import progress
from aurora_runtime.training.data.shards import Shard
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.poll_backoff import JITTER_SHARE, PollBackoff
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import DEFAULT_POLICY
from aurora_runtime.training.state import shard_ledger
from aurora_runtime.training.state.retention import DELETIONS_PER_CALL
from aurora_store import Keys
from aurora_store.errors import StoreError
from aurora_store.objects import ObjectInfo
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import TrainerRig

MINUTE = 60.0
AT_REST = 10 * MINUTE
"""By then the pauses have their longest value."""
UNTIL = 60 * MINUTE
LONGEST, SHORTEST = DEFAULT_POLICY.max_poll_seconds, DEFAULT_POLICY.poll_seconds
SECONDS = 30.0
"""What a test waits at most for another thread."""


class PassingTime(Retrier):
    """Time passes only while the trainer waits. The trainer is asked to stop at :data:`UNTIL`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pauses: list[tuple[float, float]] = []
        """When each began, and how long it was."""
        self.events: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append((self.now, seconds))
        end = self.now + seconds
        while self.events and self.events[0][0] <= end:
            self.now, event = self.events.pop(0)
            event()
        self.now = end
        if end >= UNTIL:
            self.stop()


@dataclass
class Idle:
    """A trainer with its store, whose calls are written down with their time."""

    rig: TrainerRig
    time: PassingTime = field(default_factory=PassingTime)
    calls: list[tuple[float, str, str]] = field(default_factory=list)

    def record_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        objects = self.rig.objects
        listed, got, put = objects.list_objects, objects.get, objects.put

        def note(call: str, key: str) -> None:
            self.calls.append((self.time.now, call, key))

        def list_objects(prefix: str, **given: object) -> Iterator[ObjectInfo]:
            note("list", prefix)
            return listed(prefix, **given)  # type: ignore[arg-type]

        def get(key: str, *given: object, **named: object) -> bytes:
            note("get", key)
            return got(key, *given, **named)  # type: ignore[arg-type]

        def write(key: str, data: bytes) -> None:
            note("put", key)
            put(key, data)

        monkeypatch.setattr(objects, "list_objects", list_objects)
        monkeypatch.setattr(objects, "get", get)
        monkeypatch.setattr(objects, "put", write)
        monkeypatch.setattr(progress, "time", self.time)
        monkeypatch.setattr(shard_ledger, "CHEAP_LISTING_SECONDS", math.inf)

    def trainer(self) -> Trainer:
        return self.rig.trainer(self.time)

    def between(self, begin: float, end: float, call: str, key: str) -> list[float]:
        """The seconds of the calls of a kind."""
        return [at for at, kind, name in self.calls if begin <= at < end and (kind, name) == (call, key)]

    def put_shard(self, seq: int) -> str:
        return tiny.put_shard(self.rig.registry, seq, [tiny.trace(seed) for seed in range(3)])


@pytest.fixture(name="idle")
def _idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Idle:
    idle = Idle(TrainerRig(tmp_path))
    idle.record_calls(monkeypatch)
    return idle


def test_a_minute_at_rest_costs_three_listings_and_three_writes_at_most(idle: Idle) -> None:
    trainer = idle.trainer()
    idle.calls.clear()
    trainer.run()
    assert {(call, key) for at, call, key in idle.calls if at > 0} == {
        ("list", Keys.traces(1)),
        ("put", Keys.TRAINER_STATUS),
    }
    for minute in range(int(AT_REST), int(UNTIL), int(MINUTE)):
        listings = idle.between(minute, minute + MINUTE, "list", Keys.traces(1))
        writes = idle.between(minute, minute + MINUTE, "put", Keys.TRAINER_STATUS)
        assert 1 <= len(listings) <= 3
        assert 1 <= len(writes) <= 3
    writes = idle.between(0, UNTIL, "put", Keys.TRAINER_STATUS)
    longest = DEFAULT_POLICY.idle_status_interval_seconds + LONGEST
    assert max(later - earlier for earlier, later in pairwise(writes)) <= longest, "nobody takes it for silent"


def test_the_first_shard_after_a_pause_is_trained_within_the_longest_wait_and_brings_the_shortest_back(
    idle: Idle,
) -> None:
    trainer, trained = idle.trainer(), list[float]()
    train, arrived = trainer.stages.fresh.train, AT_REST + 0.5
    idle.time.events = [(arrived, lambda: idle.put_shard(0))]

    def note(key: str, shard: Shard | None) -> None:
        trained.append(idle.time.now)
        train(key, shard)

    trainer.stages.fresh.train = note  # type: ignore[method-assign]
    trainer.run()
    (seconds,) = trained
    assert arrived <= seconds <= arrived + LONGEST
    held = [pause for at, pause in idle.time.pauses if seconds <= at < seconds + DEFAULT_POLICY.poll_hold_seconds]
    assert set(held) == {SHORTEST}
    assert idle.time.pauses[-1][1] > SHORTEST, "and later it rests again"


def test_an_upload_without_its_manifest_brings_the_shortest_wait_back(idle: Idle) -> None:
    trainer = idle.trainer()
    data = Keys.shard(1, "pod-0", "boot", 0, utc_now()) + ".safetensors"
    idle.time.events = [(AT_REST, lambda: idle.rig.objects.put(data, b"data"))]
    trainer.run()
    listed = idle.between(AT_REST, UNTIL, "list", Keys.traces(1))[0]
    assert (listed, SHORTEST) in idle.time.pauses


def test_deletions_do_not_take_longer_at_rest(idle: Idle) -> None:
    trainer = idle.trainer()
    keys = [f"{Keys.shard(1, 'pod-0', 'boot', seq, utc_now())}.json" for seq in range(5 * DELETIONS_PER_CALL)]
    idle.time.events = [(AT_REST, lambda: trainer.stages.retention._deletable.update(dict.fromkeys(keys)))]
    trainer.run()
    turns = [pause for at, pause in idle.time.pauses if at > AT_REST]
    assert turns[:4] == [SHORTEST] * 4


def test_an_idle_trainer_writes_a_changed_status_at_its_next_listing(idle: Idle) -> None:
    trainer = idle.trainer()
    changed = 4.5
    idle.time.events = [(changed, lambda: setattr(trainer.progress, "_message", "another"))]
    trainer.run()
    assert idle.between(0, 15, "put", Keys.TRAINER_STATUS) == [0.0, 6.0]


def test_a_wait_does_not_end_shortly_before_a_slow_listing_may_be_repeated(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_seconds = 1.3  # repeated after 26 s at the earliest; a wait takes 24 to 30 s
    monkeypatch.setattr(shard_ledger, "CHEAP_LISTING_SECONDS", 0.1)
    trainer = idle.trainer()
    ledger, list_shards = trainer.learning.ledger, idle.rig.registry.list_shards
    ledger._clock, ledger._next_listing = idle.time.monotonic, 0.0

    def slow(lineage: int) -> ShardListing:
        idle.time.now += slow_seconds
        return list_shards(lineage)

    monkeypatch.setattr(idle.rig.registry, "list_shards", slow)
    trainer.run()
    listings = idle.between(0, UNTIL, "list", Keys.traces(1))
    assert len(listings) > UNTIL / (LONGEST + slow_seconds) - 1
    assert max(later - earlier for earlier, later in pairwise(listings)) <= LONGEST + slow_seconds


def test_an_idle_trainer_repeats_a_status_that_the_store_refused_after_the_shortest_wait(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, put = list[float](), idle.rig.registry.put_trainer_status

    def put_or_refuse(status: TrainerStatus) -> None:
        sent.append(idle.time.now)
        if AT_REST <= idle.time.now < AT_REST + LONGEST:
            raise StoreError("no route")
        put(status)

    monkeypatch.setattr(idle.rig.registry, "put_trainer_status", put_or_refuse)
    idle.trainer().run()
    refused = [seconds for seconds in sent if AT_REST <= seconds < AT_REST + LONGEST]
    assert sent[sent.index(refused[-1]) + 1] == refused[-1] + SHORTEST


def test_a_trainer_in_a_long_wait_stops_at_once(idle: Idle) -> None:
    idle.rig.policy = replace(idle.rig.policy, poll_seconds=600.0, max_poll_seconds=600.0)
    retrier, waits = Retrier(), threading.Event()
    sleep = retrier.sleep

    def wait(seconds: float) -> None:
        waits.set()
        sleep(seconds)

    retrier.sleep = wait  # type: ignore[method-assign]
    thread = threading.Thread(target=idle.rig.trainer(retrier).run, daemon=True)
    thread.start()
    assert waits.wait(SECONDS)
    retrier.stop()
    thread.join(SECONDS)
    assert not thread.is_alive()


PAUSES = st.floats(0.1, 100.0)


@given(shortest=PAUSES, longest=PAUSES, hold=st.floats(0.0, 300.0), seed=st.integers(), resets=st.lists(st.booleans()))
def test_pauses_hold_then_double_up_to_the_bound_and_begin_again_after_a_reset(
    shortest: float, longest: float, hold: float, seed: int, resets: list[bool]
) -> None:
    backoff = PollBackoff(shortest, longest, hold, random.Random(seed).uniform)  # noqa: S311 - jitter
    waited, level = 0.0, shortest
    for reset in [*resets, *[False] * 20]:
        if reset:
            backoff.reset()
            waited, level = 0.0, shortest
        level = min(2 * level, max(shortest, longest)) if waited >= hold else level
        pause = backoff.next_pause()
        assert max(shortest, (1 - JITTER_SHARE) * level) <= pause <= level
        waited += pause


@given(seed=st.integers(), gap=st.floats(0.0, DEFAULT_POLICY.poll_hold_seconds - DEFAULT_POLICY.poll_seconds))
def test_the_default_pauses_are_the_shortest_while_shards_come_within_the_hold(seed: int, gap: float) -> None:
    policy = DEFAULT_POLICY
    backoff = PollBackoff(
        policy.poll_seconds,
        policy.max_poll_seconds,
        policy.poll_hold_seconds,
        random.Random(seed).uniform,  # noqa: S311 - jitter
    )
    waited = 0.0
    while waited < gap:
        pause = backoff.next_pause()
        assert pause == policy.poll_seconds
        waited += pause


def test_after_an_hour_without_traffic_a_pause_is_at_most_thirty_seconds() -> None:
    policy = DEFAULT_POLICY
    backoff = PollBackoff(policy.poll_seconds, policy.max_poll_seconds, policy.poll_hold_seconds, max)
    pauses = [backoff.next_pause() for _ in range(270)]
    assert pauses[:150] == [2.0] * 150, "for five minutes"
    assert pauses[150:] == [4.0, 8.0, 16.0, *[30.0] * 117]


def test_the_operator_never_takes_an_idle_trainer_for_silent() -> None:
    policy = DEFAULT_POLICY
    oldest = policy.idle_status_interval_seconds + policy.max_poll_seconds + 1.2 * REST_SECONDS
    assert timedelta(seconds=oldest) < TRAINER_SILENCE
