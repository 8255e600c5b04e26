"""A store that is away for a moment when a measurement ends costs no measurement."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import main
from aurora_store import Keys
from aurora_store.errors import ObjectRefused, StoreError
from tests.assets.signing import KEYS
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import evidence

EVIDENCE = Keys.evidence(1, 1)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "STORE_RETRY_SECONDS", 0.001)


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


def test_a_missing_right_is_not_asked_for_again() -> None:
    class Refusing:
        calls = 0

        def put_evidence(self, _: object) -> str:
            self.calls += 1
            raise ObjectRefused("allow s3:PutObject")

    registry = Refusing()
    with pytest.raises(ObjectRefused):
        main._store(cast(PodRegistry, registry), evidence(1))
    assert registry.calls == 1
