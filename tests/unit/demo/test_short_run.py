"""The demo's speculator differs from the rig's in waits only, and fits a node of two cores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.inference_deployment import AGENT_RESOURCES
from tests.demo.short_run import CPU, SPEC
from tests.demo.stages import ROOT
from tests.rig.small_speculator import RIG_CPU, CpuShares, small_speculator

STORE = {"bucket": "aurora", "endpoint": "http://store:8333", "credentials": {"secretRef": {"name": "aurora-store"}}}


def spec(overrides: dict[str, Any] | None = None, cpu: CpuShares = RIG_CPU) -> dict[str, Any]:
    """The spec without templates, of which only the requests differ."""
    resource = small_speculator("chat", model=ROOT, python=Path(sys.prefix), store=STORE, spec=overrides, cpu=cpu)
    parsed = SpeculatorSpec.model_validate(resource["spec"]).model_dump()
    for part in ("serving", "training", "validation"):
        del parsed[part]["template"]
    return parsed


def millicores(quantity: str) -> int:
    assert quantity.endswith("m")
    return int(quantity[:-1])


def test_the_gate_the_analysis_and_the_amount_of_training_are_the_rigs_own() -> None:
    rig, demo = spec(), spec(SPEC, CPU)
    assert (rig["serving"].pop("device"), demo["serving"].pop("device")) == ("auto", "cpu")
    assert demo == rig


def test_the_containers_request_the_given_shares() -> None:
    resource = small_speculator("chat", model=ROOT, python=Path(sys.prefix), store=STORE, cpu=CpuShares(1, 2, 3))
    requests = [
        resource["spec"][part]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
        for part in ("serving", "training", "validation")
    ]
    assert requests == ["1m", "2m", "3m"]


@pytest.mark.parametrize("cpu", [RIG_CPU, CPU])
def test_all_pods_and_a_measurement_fit_a_node_of_two_cores(cpu: CpuShares) -> None:
    values = yaml.safe_load((ROOT / "charts/aurora-operator/values.yaml").read_text())
    operator = values["replicas"] * millicores(values["resources"]["requests"]["cpu"])
    store = millicores(values["embeddedStore"]["resources"]["requests"]["cpu"])
    pods = 2 * (cpu.serving + millicores(AGENT_RESOURCES["requests"]["cpu"]))
    assert operator + store + pods + cpu.training + cpu.validation <= 2000
