"""The plugin needs what the extra ``cli`` installs and nothing more."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from tests.unit.docs.markdown import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOADED = "import sys, aurora_cli.main; print(' '.join({name.partition('.')[0] for name in sys.modules}))"


def distributions(extra: str) -> set[str]:
    """The packages that an extra names, those of extras within it included."""
    found = {re.split(r"[\[<>=]", requirement)[0] for requirement in PROJECT["optional-dependencies"][extra]}
    return found | (distributions("store") if extra != "store" else set())


def test_the_program_loads_only_what_its_extra_installs() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"aurora_cli", "typer", "rich", "kubernetes", "yaml", "boto3"} <= loaded
    assert {"typer", "rich", "kubernetes", "pyyaml", "boto3"} <= distributions("cli")
    foreign = {"kopf", "aiohttp", "prometheus_client", "numpy", "torch", "sglang", "aurora_operator", "aurora_runtime"}
    assert loaded & foreign == set()
