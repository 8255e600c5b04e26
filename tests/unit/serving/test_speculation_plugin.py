"""The speculation plugin says in ``speculation.json`` why it does not control an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import speculation_plugin
from aurora_runtime.serving.pod_files import PodFolder


def test_a_refusal_is_written_for_the_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = SpeculationSettings(state_folder=str(tmp_path), boot="b", draft_steps=3)
    monkeypatch.setenv("AURORA_SPECULATION", settings.to_json().decode())
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    with pytest.raises(EngineMismatch, match=r"0\.5\.24"):
        speculation_plugin.install()
    state = PodFolder(tmp_path).read_speculation_state()
    assert state is not None
    assert (state.boot, state.ok) == ("b", False)
    assert "SGLang 0.5.24 is installed" in state.error


def test_without_settings_the_plugin_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AURORA_SPECULATION", raising=False)
    monkeypatch.setattr(speculation_plugin, "register", lambda _: pytest.fail("nothing may be registered"))
    speculation_plugin.install()
