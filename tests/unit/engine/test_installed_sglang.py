"""The installed SGLang has what our plugins use, computes what they need, and takes our command lines and samples.

``make test-slow SUITE=sglang`` runs the same tests with each of the other supported versions.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_api.v1alpha1.serving import ServingSpec
from aurora_protocol.pod_settings import ServingSettings
from aurora_runtime.cpu import launch_settings as cpu
from aurora_runtime.engine.speculation_flags import RoundController
from aurora_runtime.serving.launcher import engine_arguments
from aurora_runtime.sglang_version import SUPPORTED_SGLANG
from tests.unit.docs.markdown import ROOT, pages

RUNTIME = ROOT / "runtime/aurora_runtime"
NOT_PRIVATE = ("sglang.srt.plugins.hook_registry.HookRegistry", "sglang.srt.plugins.hook_registry.HookType")
"""SGLang's own interface for plugins."""


def our_command_lines() -> dict[str, list[str]]:
    """What the launcher starts, for each shape."""
    found = {}
    for shape in Shape:
        controller = RoundController(Path("/steps.json"), "{}") if shape is not Shape.FIXED else None
        found[shape.value] = engine_arguments(
            ServingSettings.model_validate(SETTINGS | {"draft": DraftSpec(shape=shape)}),
            draft=Path("/draft"),
            version=1,
            port=1,
            controller=controller,
            device_args=cpu.server_args(speculative=True),
        )
    return found


SETTINGS: dict[str, Any] = {
    "namespace": "n",
    "name": "s",
    "target": {"model": "m"},
    "capture": {},
    "store": {"bucket": "bkt", "root": "r", "owner": "12345678"},
}


def documented_arguments() -> Iterator[tuple[str, list[str]]]:
    """``serving.extraArgs`` of every sample and of every YAML block in the documents."""
    texts = [(path.name, path.read_text()) for path in sorted((ROOT / "docs/samples").rglob("*.yaml"))]
    texts += [(page.name, block) for page in pages() for block in page.blocks("yaml")]
    for name, text in texts:
        for value in yaml.safe_load_all(text):
            spec = value.get("spec", value) if isinstance(value, dict) else {}
            serving = spec.get("serving", {}) if isinstance(spec, dict) else {}
            if isinstance(serving, dict) and "extraArgs" in serving:
                yield name, serving["extraArgs"]


@cache
def installed() -> tuple[dict[str, Any], dict[str, list[str]]]:
    """What the installed SGLang answers, and the command lines that it was asked about."""
    lines = our_command_lines()
    lines |= {
        f"{name} {number}": ["--model-path", "m", *found] for number, (name, found) in enumerate(documented_arguments())
    }
    environment = os.environ | {"SGLANG_PLUGINS": "aurora_cpu"}
    environment |= cpu.environment(environment)
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.unit.engine.installed_sglang"],
        input=json.dumps(list(lines.values())),
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        cwd=ROOT,
    )
    return json.loads(made.stdout.splitlines()[-1]), lines


def test_the_version_is_supported() -> None:
    assert installed()[0]["version"] in SUPPORTED_SGLANG


def test_every_function_that_we_hook_or_call_is_as_we_use_it() -> None:
    assert installed()[0]["faults"] == []


def test_a_checksum_needs_no_gpu() -> None:
    assert installed()[0]["checksums"] == ["bias", "weight"]


def test_sglangs_parser_takes_our_command_lines_and_those_of_all_samples() -> None:
    answer, lines = installed()
    refused = {name: refusal for name, refusal in zip(lines, answer["refusals"], strict=True) if refusal}
    assert refused == {}
    assert any("minimax" in name for name in lines), "the samples are among the command lines"


def test_every_argument_that_admission_names_is_one_of_sglangs() -> None:
    """A misspelt flag in a rule would refuse nothing."""
    schema = ServingSpec.model_json_schema(by_alias=True)["properties"]["extraArgs"]
    rules = " ".join(rule["rule"] for rule in schema["x-kubernetes-validations"])
    named = set(re.findall(r"'(--[a-z-]+)'", rules))
    assert len(named) > 20
    assert named - set(installed()[0]["flags"]) == {"--speculative-", "--speculative-ngram-"}, "beginnings of flags"


def _imported() -> Iterator[tuple[Path, str]]:
    """The dotted names that our modules import from SGLang."""
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang"):
                for alias in node.names:
                    yield path, f"{node.module}.{alias.name}"


def test_everything_that_our_modules_import_from_sglang_is_checked_before_it_is_used() -> None:
    used = installed()[0]["used"]
    unchecked = {
        f"{path.name}: {name}"
        for path, name in _imported()
        if name not in NOT_PRIVATE and not any(use == name or use.startswith(f"{name}.") for use in used)
    }
    assert unchecked == set()
