"""``make gpu`` needs only torch and Triton for kernels, and hides no part.

``make integration-gpu`` runs it on a CPU.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.assets import bench_engine
from tests.bench.gpu import CHECKOUT
from tests.bench.gpu.parts import CONCURRENCIES, SHAPES, Machine, parts_of
from tests.bench.gpu.report import NO_GPU, Result, report
from tests.bench.trainer import TARGET_SHAPES

NOT_INSTALLED = ("pydantic", "safetensors", "sglang", "boto3", "aiohttp", "transformers", "hypothesis")


def test_kernels_can_be_measured_where_only_torch_and_triton_are_installed() -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_INSTALLED!r}));"
        "import tests.bench.gpu.kernel_run, tests.bench.gpu.kernel_cases"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_part_that_cannot_run_is_listed_with_the_reason() -> None:
    parts = {part.name: part for part in parts_of("cuda", tiny=False)}
    bare, full, four = (
        Machine(1, {"torch", "triton"}.__contains__),
        Machine(1, lambda _: True),
        Machine(4, lambda _: True),
    )
    assert not any(bare.obstacle(part) for name, part in parts.items() if name.startswith("kernel"))
    assert "pydantic" in bare.obstacle(parts["training run, qwen3-8b"])
    assert "sgl_kernel" in bare.obstacle(parts["capture cost, TP 1"])
    assert "needs GPUs: 2" in full.obstacle(parts["capture cost, TP 2"])
    assert "9 heads" in four.obstacle(parts["capture cost, TP 2"])
    assert [name for name, part in parts.items() if full.obstacle(part)] == [n for n in parts if n.endswith("TP 2")]
    listed = report(
        [Result("one", "python -m one", obstacle="no GPU"), Result("two", "x", failed=True, output="e")],
        "t",
        on_gpu=True,
    )
    assert "| one | `python -m one` | no GPU |" in listed
    assert "| two | `x` | e |" in listed


def test_a_bench_of_serving_on_a_gpu_gets_no_flag_of_the_cpu_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in bench_engine.server_arguments(True)
    assert bench_engine.server_environment({})
    (part,) = [part for part in parts_of("cuda", tiny=False) if part.name == "capture cost, TP 2"]
    for name, value in part.variables.items():
        monkeypatch.setenv(name, value)
    assert bench_engine.server_arguments(True) == ["--tp", "2"]
    assert bench_engine.server_environment({}) == {}


def test_all_shapes_and_concurrencies_are_measured() -> None:
    commands = [part.shown() for part in parts_of("cuda", tiny=False)]
    assert set(SHAPES) <= set(TARGET_SHAPES)
    for shape in SHAPES:
        assert sum(f"tests.bench.trainer --shape {shape}" in command for command in commands) == 2
    assert sum(" ".join(CONCURRENCIES) in command for command in commands) == 2


def test_a_row_of_a_gpu_shows_time_and_share_of_the_roofline() -> None:
    row = {
        "kernel": "adamw-average",
        "size": "8 weights",
        "implementation": "kernel",
        "milliseconds": [2.0, 1.0, 3.0],
        "peak_mebibytes": 4.0,
        "least_milliseconds": 1.5,
        "largest_difference": 1e-7,
    }
    text = report(
        [Result("kernel", "x", figures={"device": "NVIDIA H100", "roofs": {}, "rows": [row]})], "t", on_gpu=True
    )
    assert "| adamw-average | 8 weights | kernel | 2.000 | 75% | 4 | 1.0e-07 | NVIDIA H100 |" in text
    assert NO_GPU not in text
