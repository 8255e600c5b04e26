"""A real API server accepts the samples for other projects, with these projects' resource types installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.integration.chart.conftest import TEAM
from tests.rig.api_server import ApiServer
from tests.rig.third_party_crds import MODULES

SAMPLES = Path(__file__).parents[3] / "docs/samples"
FOR_OTHERS = (
    "kueue/queues.yaml",
    "inference-pool/pool.yaml",
    "resource-claims/gpu.yaml",
    "gateway/route.yaml",
    "autoscaling/keda.yaml",
    "autoscaling/keda-schedule.yaml",
)


@pytest.fixture(scope="module", name="types")
def _types(server: ApiServer) -> None:
    """The other projects' resource types. Tests of other modules do not look at them."""
    crds = [crd for module in MODULES for crd in module.crds()]
    server.apply(*crds)
    names = [f"crd/{crd['metadata']['name']}" for crd in crds]
    server.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")


@pytest.mark.parametrize("name", FOR_OTHERS)
@pytest.mark.usefixtures("types")
def test_the_samples_fit_the_other_projects_types(server: ApiServer, name: str) -> None:
    """Unknown fields are refused, because kubectl asks for strict validation."""
    sample = SAMPLES / name
    answer = server.kubectl("apply", "--dry-run=server", "--validate=strict", "-n", TEAM, "-f", sample)
    assert answer.count("created (server dry run)") == len(list(yaml.safe_load_all(sample.read_text())))
