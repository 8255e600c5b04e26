"""A validator signs what it measures, so it measures nothing without its key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_runtime.validation import main


def test_a_validator_without_its_key_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, object] = {
        "namespace": "n",
        "name": "s",
        "target": {"model": "m"},
        "draft": {},
        "validation": {},
        "store": {"bucket": "b", "root": "aurora/n/s", "owner": "1a2b3c4d", "endpoint": "http://127.0.0.1:1"},
    }
    settings |= {"candidate": 1, "active": 0, "attempt": 1}
    monkeypatch.setenv("AURORA_SETTINGS", json.dumps(settings))
    with pytest.raises(SystemExit):
        main.main(["--signing", str(tmp_path)])
    assert "has no evidence-key" in caplog.text
