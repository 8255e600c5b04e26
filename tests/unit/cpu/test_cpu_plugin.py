"""The plugin's two promises: silent beside a GPU, loud when SGLang's functions are not the ones it wraps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aurora_runtime.cpu import cpu_plugin, launch_settings
from aurora_runtime.errors import EngineMismatch


def test_nothing_happens_unless_the_cpu_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch_settings.ENGINE_SWITCH, raising=False)
    before = set(sys.modules)
    cpu_plugin.install()
    assert not {name for name in set(sys.modules) - before if name.startswith("sglang")}


def test_a_moved_or_changed_function_is_named() -> None:
    def around(original: object) -> None:
        return None

    with pytest.raises(EngineMismatch, match="no_such_function"):
        cpu_plugin.check(cpu_plugin.Hook("json.no_such_function", ("s",), around))
    with pytest.raises(EngineMismatch, match=r"json\.load takes fp"):
        cpu_plugin.check(cpu_plugin.Hook("json.load", ("file",), around))
    cpu_plugin.check(cpu_plugin.Hook("textwrap.dedent", ("text",), around))


def test_the_standin_leads_the_path_and_keeps_the_rest() -> None:
    variables = launch_settings.environment({"PYTHONPATH": "/somewhere"}, threads=2)
    assert variables["PYTHONPATH"] == f"{launch_settings.STANDIN}:/somewhere"
    assert launch_settings.environment(variables)["PYTHONPATH"] == variables["PYTHONPATH"]
    assert variables["OMP_NUM_THREADS"] == "2"


def test_the_engine_description_needs_no_torch() -> None:
    code = "import sys; from aurora_runtime.cpu import launch_settings, cpu_plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_speculation_changes_no_flag_that_costs_time() -> None:
    extra = [flag for flag in launch_settings.server_args(True) if flag not in launch_settings.server_args(False)]
    assert extra == ["--speculative-draft-attention-backend"]
