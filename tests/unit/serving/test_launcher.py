"""The launcher imports little, and engine starts are told apart."""

from __future__ import annotations

import subprocess
import sys

from aurora_runtime.serving.pod_files import new_boot


def test_boots_sort_by_age() -> None:
    assert len({new_boot() for _ in range(100)}) == 100
    assert len(new_boot()) == 16


def test_the_launcher_imports_neither_torch_nor_sglang() -> None:
    code = "import sys, aurora_runtime.serving.launcher; sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
