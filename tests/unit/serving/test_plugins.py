"""Our plugins refuse an SGLang that they do not know, write why for launcher and agent, and need their settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import capture_plugin, speculation_plugin
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.serving.pod_files import CaptureState, PodFolder, SpeculationState
from aurora_runtime.sglang_uses import Call
from aurora_runtime.sglang_version import SUPPORTED_SGLANG, require_sglang


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The functions that are hooked, in a process with settings and a supported SGLang."""
    capture = CaptureSettings(state_folder=str(tmp_path), lineage=1, pod="p", boot="b")
    speculation = SpeculationSettings(state_folder=str(tmp_path), boot="b", draft_steps=3)
    monkeypatch.setenv("AURORA_CAPTURE", capture.to_json().decode())
    monkeypatch.setenv("AURORA_SPECULATION", speculation.to_json().decode())
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: SUPPORTED_SGLANG[-1])
    targets: list[str] = []
    for plugin in (capture_plugin, speculation_plugin, vocabulary_plugin):
        monkeypatch.setattr(plugin, "register", lambda hooks: targets.extend(hook.target for hook in hooks))
    return targets


def refusal(state: CaptureState | SpeculationState | None) -> str:
    assert state is not None
    assert (state.ok, state.boot) == (False, "b")
    return state.error


def is_protected(registered: list[str]) -> bool:
    """Whether the engine is protected although nothing is captured."""
    captures = capture_plugin.SAMPLE_FUNCTION in registered
    return "sglang.srt.utils.auth.add_api_key_middleware" in registered and not captures


@pytest.mark.parametrize("other", ["0.5.21", "0.5.24", "0.5.22.post1"])
def test_another_sglang_is_refused(
    monkeypatch: pytest.MonkeyPatch, registered: list[str], tmp_path: Path, other: str
) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: other)
    for plugin in (capture_plugin, speculation_plugin, vocabulary_plugin):
        with pytest.raises(EngineMismatch, match=f"SGLang {other} is installed, but .* needs SGLang 0.5.2"):
            plugin.install()
    assert f"SGLang {other} is installed" in refusal(PodFolder(tmp_path).read_capture_state())
    assert f"SGLang {other} is installed" in refusal(PodFolder(tmp_path).read_speculation_state())
    assert is_protected(registered)


@pytest.mark.parametrize("version", SUPPORTED_SGLANG)
def test_each_supported_version_is_accepted(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: version)
    assert require_sglang("the launcher") == version


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("json.dumpz"), r"no json\.dumpz"),
        (Call("shlex.quote", ("text",)), r"shlex\.quote takes s, but we pass text"),
    ],
)
def test_a_moved_or_changed_function_is_refused(
    monkeypatch: pytest.MonkeyPatch, registered: list[str], tmp_path: Path, call: Call, reason: str
) -> None:
    monkeypatch.setattr(capture_plugin, "CALLS", (call,))
    with pytest.raises(EngineMismatch, match=reason):
        capture_plugin.install()
    assert refusal(PodFolder(tmp_path).read_capture_state())
    assert is_protected(registered)


@pytest.mark.parametrize("install", [capture_plugin.install, speculation_plugin.install])
def test_without_settings_a_plugin_does_nothing(
    monkeypatch: pytest.MonkeyPatch, registered: list[str], install: Callable[[], None]
) -> None:
    for variable in ("AURORA_CAPTURE", "AURORA_SPECULATION"):
        monkeypatch.delenv(variable)
    install()
    assert registered == []
