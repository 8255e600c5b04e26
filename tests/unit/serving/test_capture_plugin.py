"""The capture plugin refuses an SGLang that it does not know, and does nothing without settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import capture_plugin
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.sglang_uses import Call
from aurora_runtime.sglang_version import SUPPORTED_SGLANG


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The functions that are hooked, in a process with settings and a supported SGLang."""
    settings = CaptureSettings(state_folder=str(tmp_path), lineage=1, pod="p", boot="b")
    monkeypatch.setenv("AURORA_CAPTURE", settings.to_json().decode())
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: SUPPORTED_SGLANG[-1])
    targets: list[str] = []
    monkeypatch.setattr(capture_plugin, "register", lambda hooks: targets.extend(hook.target for hook in hooks))
    return targets


def _refused(registered: list[str], tmp_path: Path, reason: str) -> None:
    """The refusal is written for the launcher, and the engine is protected all the same."""
    with pytest.raises(EngineMismatch, match=reason):
        capture_plugin.install()
    state = PodFolder(tmp_path).read_capture_state()
    assert state is not None
    assert not state.ok
    assert state.boot == "b"
    assert "sglang.srt.utils.auth.add_api_key_middleware" in registered
    assert capture_plugin.SAMPLE_FUNCTION not in registered


def test_another_sglang_is_refused(monkeypatch: pytest.MonkeyPatch, registered: list[str], tmp_path: Path) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    _refused(registered, tmp_path, r"0\.5\.24")


def test_a_moved_or_changed_function_is_refused(
    monkeypatch: pytest.MonkeyPatch, registered: list[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(capture_plugin, "CALLS", (Call("json.dumpz"),))
    _refused(registered, tmp_path, r"no json\.dumpz")
    monkeypatch.setattr(capture_plugin, "CALLS", (Call("shlex.quote", ("text",)),))
    _refused(registered, tmp_path, r"shlex\.quote takes s, but we pass text")


def test_without_settings_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AURORA_CAPTURE", raising=False)
    monkeypatch.setattr(capture_plugin, "register", lambda _: pytest.fail("nothing may be registered"))
    capture_plugin.install()
