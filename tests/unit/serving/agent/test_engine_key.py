"""Each pod has an engine key of its own."""

from __future__ import annotations

from pathlib import Path

from aurora_protocol.pod_settings import ADMIN_KEY
from aurora_runtime.serving.agent.first_staging import make_engine_key


def test_a_pod_keeps_its_key_and_two_pods_have_different_ones(tmp_path: Path) -> None:
    keys = []
    for pod in ("a", "b"):
        path = tmp_path / pod / ADMIN_KEY
        path.parent.mkdir()
        make_engine_key(path)
        keys.append(path.read_text())
        make_engine_key(path)
        assert path.read_text() == keys[-1], "the init container may run again while the engine goes on"
        assert path.stat().st_mode & 0o777 == 0o440
    assert keys[0] != keys[1]
    assert all(len(key) >= 32 for key in keys)
