"""A validator believes only baselines and evidence that a validator of the same speculator signed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_protocol.signatures import KeyName
from aurora_runtime.validation import main
from aurora_runtime.validation.cached_baselines import find_baseline
from aurora_store import Registry
from tests.assets.signing import KEYS
from tests.unit.fakes import FolderObjects
from tests.unit.operator.worlds import evidence
from tests.unit.validation.test_cached_baselines import REQUIREMENTS, active, baseline


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    (tmp_path / "store").mkdir()
    return FolderObjects(tmp_path / "store")


@pytest.mark.parametrize(
    ("writer", "believed"),
    [
        (lambda objects: Registry(objects, KEYS), True),
        (Registry, False),
        (lambda objects: Registry(objects, {KeyName.EVIDENCE: b"another"}), False),
        (lambda objects: Registry(objects, {KeyName.EVIDENCE: KEYS[KeyName.CHANNEL]}), False),
    ],
    ids=["a validator", "no key", "another key", "the key of the init containers"],
)
def test_only_a_signed_baseline_is_used(
    objects: FolderObjects, writer: Callable[[FolderObjects], Registry], believed: bool
) -> None:
    writer(objects).put_baseline(baseline())
    reader = Registry(objects, {KeyName.EVIDENCE: KEYS[KeyName.EVIDENCE]})
    assert (find_baseline(reader, 1, active(2), REQUIREMENTS) is not None) is believed


def test_unsigned_evidence_does_not_make_a_draft_the_reference(objects: FolderObjects) -> None:
    reader = Registry(objects, KEYS)
    reader.put_baseline(baseline())
    Registry(objects).put_evidence(evidence(7))
    assert find_baseline(reader, 1, active(7), REQUIREMENTS) is None


def test_a_validator_without_its_key_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, object] = {
        "namespace": "n",
        "name": "s",
        "target": {"model": "m"},
        "draft": {},
        "validation": {},
        "store": {"bucket": "b", "root": "aurora/n/s-1a2b3c4d", "endpoint": "http://127.0.0.1:1"},
    }
    settings |= {"candidate": 1, "active": 0, "attempt": 1}
    monkeypatch.setenv("AURORA_SETTINGS", json.dumps(settings))
    with pytest.raises(SystemExit):
        main.main(["--signing", str(tmp_path)])
    assert "has no evidence-key" in caplog.text
