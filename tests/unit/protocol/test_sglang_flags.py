"""The operator's list of SGLang flags equals that of the pinned version, and finds misspelt flags."""

from __future__ import annotations

import os
import subprocess
import sys

from aurora_protocol.sglang_flags import known_flags, unknown_flags

RENDER = "from aurora_runtime.engine.list_sglang_flags import render; print(render(), end='')"


def test_the_list_equals_that_of_the_installed_sglang() -> None:
    environment = os.environ | {"SGLANG_PLUGINS": "aurora_cpu"}
    made = subprocess.run(
        [sys.executable, "-c", RENDER], check=True, capture_output=True, text=True, timeout=120, env=environment
    )
    flags = {line for line in made.stdout.splitlines() if line.startswith("--")}
    assert flags == known_flags()


def test_a_misspelt_flag_is_named() -> None:
    assert unknown_flags(["--tp", "2", "--no-such-flag", "--context-length=8192", "--tpp=2", "plain"]) == [
        "--no-such-flag",
        "--tpp",
    ]
