"""A machine whose GPUs cannot be asked for is a fault with a reason."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.serving import Device
from aurora_runtime.engine import machine
from aurora_runtime.errors import EngineFault, GpuMissing


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
