"""The plugin does nothing unless the CPU engine serves, and the launch settings start comparable servers."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from aurora_runtime.cpu import cpu_plugin, launch_settings, wrappers


def test_the_plugin_does_nothing_unless_the_cpu_engine_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch_settings.ENGINE_SWITCH, raising=False)
    before = set(sys.modules)
    cpu_plugin.install()
    assert not {name for name in set(sys.modules) - before if name.startswith("sglang")}


def test_the_standin_comes_first_on_pythonpath_and_the_rest_is_kept() -> None:
    variables = launch_settings.environment({"PYTHONPATH": "/somewhere"}, threads=2)
    assert variables["PYTHONPATH"] == f"{launch_settings.STANDIN}:/somewhere"
    assert launch_settings.environment(variables)["PYTHONPATH"] == variables["PYTHONPATH"]
    assert variables["OMP_NUM_THREADS"] == "2"


def test_the_allocator_keeps_its_memory_unless_the_user_says_otherwise() -> None:
    name, ours = launch_settings.ALLOCATOR_VARIABLE, launch_settings.ALLOCATOR
    variables = launch_settings.environment({})
    assert variables[name] == ours
    assert launch_settings.environment(variables)[name] == ours
    users = {name: "glibc.malloc.mmap_max=9"}
    assert launch_settings.environment(users)[name] == f"{ours}:glibc.malloc.mmap_max=9", "glibc takes the last value"


def test_an_engine_process_does_not_return_the_memory_of_a_round_to_the_kernel() -> None:
    code = (
        "import resource, torch\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.zeros(10_000_000)\n"  # 40 MB, as the logits of 200 tokens
        "before = faults()\n"
        "for _ in range(10): torch.zeros(10_000_000)\n"
        "print(faults() - before)"
    )
    environment = os.environ | launch_settings.environment({})
    command = [sys.executable, "-c", code]
    faults = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert int(faults.stdout) < 1000, "10 x 40 MB in pages of 4 kB are 98,000 faults"


def test_the_launch_settings_and_the_plugin_import_no_torch() -> None:
    code = "import sys; from aurora_runtime.cpu import launch_settings, cpu_plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_head_passes_a_buffer_on_only_where_sglang_has_one() -> None:
    quantized = SimpleNamespace(quant_method=object())
    old = wrappers.compute_head(lambda *given: len(given), None, torch.ones(1), quantized, None)
    assert old == 4, "SGLang 0.5.22 takes no buffer"
    buffer = torch.zeros(1)
    new = wrappers.compute_head(lambda *_, out: out, None, torch.ones(1), quantized, None, out=buffer)
    assert new is buffer
