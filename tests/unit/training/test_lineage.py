"""Creating the lineage with its initial draft survives kills at any write."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime.errors import CheckpointFormatError
from aurora_runtime.training.state.orphan_cleanup import orphans
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.unit.training import tiny


def test_creating_the_lineage_survives_a_kill_before_any_write(model: TargetModel) -> None:
    whole, objects = tiny.memory_registry()
    times = tiny.ticking_clock()
    tiny.open_lineage(whole, model, times)
    writes = len(objects.data)
    assert writes == 5  # config, weights, manifest, registration, lineage
    for kill in range(writes):
        registry, objects = tiny.memory_registry()
        objects.fail_at = kill
        with pytest.raises(KeyboardInterrupt):
            tiny.open_lineage(registry, model, times)
        if registry.lineage() is not None:
            registry.registration(0)
        objects.fail_at = None
        tiny.open_lineage(registry, model, times)
        stored = registry.lineage()
        assert stored is not None
        assert registry.registration(0).digest == whole.registration(0).digest
        assert orphans(registry) == set()
        before = dict(objects.data)
        tiny.open_lineage(registry, model, times)
        assert objects.data == before


def test_a_changed_target_is_refused(model: TargetModel, tmp_path: Path) -> None:
    registry, _ = tiny.memory_registry()
    tiny.open_lineage(registry, model, tiny.ticking_clock())
    other = load_target(tiny.write_target(tmp_path / "other", tied=False))
    with pytest.raises(CheckpointFormatError, match="another target"):
        tiny.open_lineage(registry, other, tiny.ticking_clock())
