"""A module that somebody plants in the working directory is never imported by a process of ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from aurora_api.v1alpha1.serving import Device
from aurora_runtime.engine import machine
from aurora_runtime.engine.machine import ISOLATED_PYTHON
from aurora_runtime.engine.server_process import EngineSpec

ROOT = Path(__file__).parents[3]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a json.py that leaves a trace when somebody imports it."""
    trace = tmp_path / "imported"
    (tmp_path / "json.py").write_text(f"open({str(trace)!r}, 'w').close(); from os import *")
    monkeypatch.chdir(tmp_path)
    return trace


def test_the_child_that_asks_for_the_gpus_imports_nothing_from_here(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_GPU_QUERY", "import json; print(json.dumps([2, 'H']))")
    assert machine.detect_machine(Device.CUDA).hardware == "2 x H"
    assert not planted.exists()


def test_an_engine_and_its_children_import_nothing_from_here(planted: Path) -> None:
    environment = EngineSpec("m", "cpu", 1).environment({"PATH": "/usr/bin"})
    assert environment.items() >= ISOLATED_PYTHON.items()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import json'], check=True)"
    subprocess.run([sys.executable, "-c", child], env=environment, check=True)
    assert not planted.exists()


def test_the_images_start_python_outside_the_folders_that_others_write_to() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    last = re.findall(r"^WORKDIR (.*)$", dockerfile, re.MULTILINE)[-1]
    assert last == "/"
    assert all(f"{name}={value}" in dockerfile for name, value in ISOLATED_PYTHON.items())
    commands = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    assert len(commands) == 3
    assert all(command.startswith('["python", "-P", "-m"') for command in commands)
