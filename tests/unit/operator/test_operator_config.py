"""The operator's own settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aurora_operator.errors import ConfigError
from aurora_operator.operator_config import OperatorConfig

IMAGES = {"AURORA_RUNTIME_IMAGE": "runtime:1", "AURORA_AGENT_IMAGE": "agent:1"}


def test_an_installation_is_named_by_its_lease() -> None:
    config = OperatorConfig.from_env(IMAGES | {"POD_NAMESPACE": "aurora-system", "AURORA_LEASE_NAME": "prod"})
    assert (config.lease_name, config.installation) == ("prod", "aurora-system/prod")
    assert OperatorConfig.from_env(IMAGES).installation == "default/aurora-operator"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("AURORA_AGENT_IMAGE", ""),
        ("AURORA_LEASE_SECONDS", "2"),
        ("AURORA_LEASE_SECONDS", "soon"),
        ("AURORA_METRICS_PORT", "-1"),
        ("AURORA_FIXED_USER", "perhaps"),
        ("AURORA_STORE_RULES", "{"),
        ("AURORA_STORE_RULES", '[{"buckets": []}]'),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error_that_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}: "):
        OperatorConfig.from_env(IMAGES | {variable: text})


def test_lists_are_separated_by_commas() -> None:
    assert OperatorConfig.from_env(IMAGES | {"AURORA_WATCH_NAMESPACES": "a,b,"}).watch_namespaces == ("a", "b")


def test_the_operator_refuses_to_start_without_images_and_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "aurora_operator"], env={}, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "AURORA_RUNTIME_IMAGE: Field required" in ended.stderr
    assert "Traceback" not in ended.stderr
