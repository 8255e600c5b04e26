"""A machine whose GPUs cannot be asked for is a fault with a reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from aurora_api.v1alpha1.serving import Device
from aurora_runtime.engine import machine
from aurora_runtime.errors import EngineFault, GpuMissing, Interrupted


@pytest.mark.parametrize(
    ("query", "reason"),
    [("import time; time.sleep(60)", "in 1 s"), ("raise SystemExit('no driver')", "no driver")],
)
def test_a_query_that_fails_or_hangs_is_an_engine_fault(
    monkeypatch: pytest.MonkeyPatch, query: str, reason: str
) -> None:
    monkeypatch.setattr(machine, "_GPU_QUERY", query)
    monkeypatch.setattr(machine, "GPU_QUERY_SECONDS", 1.0)
    with pytest.raises(EngineFault, match=reason):
        machine.detect_machine(Device.CUDA)


def test_a_pod_without_a_gpu_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_GPU_QUERY", "import json; print(json.dumps([0, '']))")
    with pytest.raises(GpuMissing, match=r"serving\.device: cpu"):
        machine.detect_machine(Device.CUDA)
    assert machine.detect_machine(Device.CPU).device == "cpu"


def test_a_query_that_hangs_ends_soon_after_an_interruption_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    query = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    monkeypatch.setattr(machine, "_GPU_QUERY", query)
    interrupted_at = list[float]()

    def interrupted() -> bool:
        if not interrupted_at and pid_file.exists() and pid_file.read_text():
            interrupted_at.append(time.monotonic())
        return bool(interrupted_at)

    with pytest.raises(Interrupted):
        machine.detect_machine(Device.CUDA, interrupted)
    assert time.monotonic() - interrupted_at[0] < 2
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
