"""Each pod has an admin key of its own, and all pods of a speculator have the same traffic secret."""

from __future__ import annotations

from pathlib import Path

from aurora_protocol.pod_settings import ADMIN_KEY, TRAFFIC_SECRET
from aurora_runtime.serving.agent.main import make_engine_key, make_traffic_secret


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


def test_sglang_cannot_take_a_key_for_an_option(tmp_path: Path) -> None:
    """SGLang makes a command line of its configuration file. A key that begins with "-" ends every start of its pod."""
    path = tmp_path / ADMIN_KEY
    make_engine_key(path)
    assert int(path.read_text(), 16) >= 0


def test_pods_of_a_speculator_derive_the_same_traffic_secret_which_does_not_show_the_speculators_key(
    tmp_path: Path,
) -> None:
    speculator_key = tmp_path / ADMIN_KEY
    speculator_key.write_text("key-of-the-speculator\n")
    derived = []
    for pod in ("a", "b"):
        path = tmp_path / pod / TRAFFIC_SECRET
        path.parent.mkdir()
        for _ in range(2):  # the init container may run again
            make_traffic_secret(speculator_key, path)
            derived.append(path.read_text())
        assert path.stat().st_mode & 0o777 == 0o440
    assert len(set(derived)) == 1
    assert "key-of-the-speculator" not in derived[0]
    speculator_key.write_text("another")
    make_traffic_secret(speculator_key, path)
    assert path.read_text() != derived[0]
