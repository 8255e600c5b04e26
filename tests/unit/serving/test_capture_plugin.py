"""The capture plugin refuses an SGLang that it does not know, and does nothing without settings."""

from __future__ import annotations

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import capture_plugin
from aurora_runtime.sglang_version import SGLANG_VERSION


def test_capture_refuses_another_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    with pytest.raises(EngineMismatch, match=r"0\.5\.24"):
        capture_plugin.check_sglang()


def test_capture_refuses_a_moved_or_changed_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: SGLANG_VERSION)
    monkeypatch.setattr(capture_plugin, "HOOKED_PARAMETERS", {"json.dumpz": ("obj",)})
    with pytest.raises(EngineMismatch, match=r"no json\.dumpz"):
        capture_plugin.check_sglang()
    monkeypatch.setattr(capture_plugin, "HOOKED_PARAMETERS", {"shlex.quote": ("s", "more")})
    with pytest.raises(EngineMismatch, match="the hook needs s, more"):
        capture_plugin.check_sglang()
    monkeypatch.setattr(capture_plugin, "HOOKED_PARAMETERS", {"shlex.quote": ("s",)})
    capture_plugin.check_sglang()


def test_without_settings_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AURORA_CAPTURE", raising=False)
    monkeypatch.setattr(capture_plugin, "check_sglang", lambda: pytest.fail("nothing may be checked"))
    capture_plugin.install()
