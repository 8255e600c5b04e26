"""Commands of the cluster: downloads use proxies, and nothing else does. An error of the machine is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster import command
from tests.cluster.command import NotReadyError, drop_proxies, run
from tests.cluster.local import host_resources

PRINT_PROXY = ("sh", "-c", "printf '%s' \"$HTTPS_PROXY\"")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(command, "_dropped_proxies", {})
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    return "http://proxy:1"


def test_only_downloads_use_the_proxy(proxy: str) -> None:
    assert run(*PRINT_PROXY) == ""
    assert run(*PRINT_PROXY, downloads=True) == proxy


def test_downloads_use_the_proxy_after_the_process_has_dropped_it(proxy: str) -> None:
    drop_proxies()
    drop_proxies()
    assert "HTTPS_PROXY" not in os.environ
    assert run(*PRINT_PROXY, downloads=True) == proxy


def test_a_container_without_an_init_system_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def busy(self: Path, text: str) -> int:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(NotReadyError, match="in a virtual machine with an init system"):
        host_resources._enable_controllers(tmp_path / "cgroup.subtree_control", "+cpu")
