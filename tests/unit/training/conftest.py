"""The tiny target of the trainer's unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny


@pytest.fixture
def model(tmp_path: Path) -> TargetModel:
    return tiny.target(tmp_path / "target")
