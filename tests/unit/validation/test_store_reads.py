"""A store that is away for a moment costs no measurement, neither at its end nor while its prompts are read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm
from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import main, store_reads, validation_run
from aurora_runtime.validation.held_out_prompts import held_out_prompts
from aurora_runtime.validation.store_reads import repeat_while_away
from aurora_runtime.validation.validation_run import ValidationRun
from aurora_store import Keys
from aurora_store.deadline import interruptible, total_deadline
from aurora_store.errors import ObjectMissing, ObjectRefused, StoreError
from tests.assets.signing import KEYS
from tests.unit.fakes import FolderObjects, lineage
from tests.unit.operator.worlds import evidence
from tests.unit.validation.test_held_out_prompts import NEW, OLD, Shards, registry, trace

EVIDENCE = Keys.evidence(1, 1)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_reads, "INITIAL_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    (tmp_path / "store").mkdir()
    return FolderObjects(tmp_path / "store")


def writer(objects: FolderObjects) -> PodRegistry:
    return PodRegistry(objects, {KeyName.EVIDENCE: KEYS[KeyName.EVIDENCE]})


def test_evidence_is_stored_once_the_store_is_back(objects: FolderObjects) -> None:
    objects.writes_to_refuse = 3
    main._store(writer(objects), evidence(1))
    assert list(objects.list("")) == [EVIDENCE]


def test_a_store_that_stays_away_ends_the_validator_in_bounded_time(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "STORE_SECONDS", 0.05)
    objects.down = True
    with pytest.raises(StoreError, match="the store is down"):
        main._store(writer(objects), evidence(1))


def test_prompts_are_read_although_the_store_is_away_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [trace(number) for number in range(400)]
    shards = Shards({OLD: traces[:200], NEW: traces[200:]})
    wanted = held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1)
    for name in ("newest_shards", "shard"):
        monkeypatch.setattr(shards, name, every_second_call_fails(getattr(shards, name)))
    assert held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1) == wanted


def test_a_draft_is_found_although_the_store_is_away_for_a_moment(
    objects: FolderObjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = {Arm.ACTIVE: cast(Registration, SimpleNamespace(version=1))}
    registry = PodRegistry(objects, KEYS)
    run = ValidationRun(cast(Any, None), cast(Any, None), drafts, registry, lineage(), math.inf, datetime.now(UTC))
    monkeypatch.setattr(validation_run, "fetch_draft", every_second_call_fails(lambda *_: "found"))
    assert cast(str, run.fetch_draft(Arm.ACTIVE, tmp_path)) == "found"


def every_second_call_fails(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of a store that is away for the first call, the third and so on."""
    calls = 0

    def flaky(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise StoreError("HTTP 503")
        return function(*arguments)

    return flaky


@pytest.mark.parametrize("error", [ObjectMissing("no such object"), ObjectRefused("allow s3:PutObject")])
def test_a_definite_answer_is_not_asked_for_again(error: StoreError) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        repeat_while_away("testing", call)
    assert calls == 1


def test_a_call_that_nobody_waits_for_is_not_repeated() -> None:
    def away() -> None:
        raise StoreError("HTTP 503")

    began = time.monotonic()
    with interruptible(lambda: True), pytest.raises(StoreError):
        repeat_while_away("testing", away)
    with total_deadline(0.05), pytest.raises(StoreError):
        repeat_while_away("testing", away)
    assert time.monotonic() - began < store_reads.READ_SECONDS / 2
