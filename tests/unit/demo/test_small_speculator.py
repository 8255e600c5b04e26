"""The speculator of the demo and the end-to-end tests fits a node of two cores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.inference_deployment import AGENT_RESOURCES
from tests.demo.stages import ROOT
from tests.rig.small_speculator import CPU, ON_CPU, small_speculator

STORE = {"bucket": "aurora", "endpoint": "http://store:8333", "credentials": {"secretRef": {"name": "aurora-store"}}}


def spec(overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    resource = small_speculator("chat", model=ROOT, python=Path(sys.prefix), store=STORE, spec=overrides)
    return SpeculatorSpec.model_validate(resource["spec"]).model_dump()


def millicores(quantity: str) -> int:
    assert quantity.endswith("m")
    return int(quantity[:-1])


def test_the_demo_differs_from_the_end_to_end_tests_in_its_device_only() -> None:
    tested, demo = spec(), spec(ON_CPU)
    assert (tested["serving"].pop("device"), demo["serving"].pop("device")) == ("auto", "cpu")
    assert demo == tested


def test_all_pods_and_a_measurement_fit_a_node_of_two_cores() -> None:
    values = yaml.safe_load((ROOT / "charts/aurora-operator/values.yaml").read_text())
    operator = values["replicas"] * millicores(values["resources"]["requests"]["cpu"])
    store = millicores(values["embeddedStore"]["resources"]["requests"]["cpu"])
    pods = 2 * (CPU.serving + millicores(AGENT_RESOURCES["requests"]["cpu"]))
    assert operator + store + pods + CPU.training + CPU.validation <= 2000
