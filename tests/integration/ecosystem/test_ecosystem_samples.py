"""A real API server accepts the samples for other projects, with these projects' resource types installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.rig.api_server import ApiServer, api_server
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


@pytest.fixture(scope="module", name="server")
def _server() -> Iterator[ApiServer]:
    """A server with the other projects' resource types."""
    with api_server() as server:
        crds = [crd for module in MODULES for crd in module.crds()]
        server.apply(*crds)
        names = [f"crd/{crd['metadata']['name']}" for crd in crds]
        server.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
        yield server


@pytest.mark.parametrize("name", FOR_OTHERS)
def test_the_samples_fit_the_other_projects_types(server: ApiServer, name: str) -> None:
    """Unknown fields are refused, because kubectl asks for strict validation."""
    sample = SAMPLES / name
    answer = server.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", sample)
    assert answer.count("created (server dry run)") == len(list(yaml.safe_load_all(sample.read_text())))
