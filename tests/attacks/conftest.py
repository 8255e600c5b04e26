"""One cluster and one speculator for all attacks. Each test leaves the speculator as healthy as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.config import new_client_from_config

from tests.assets.cache import cache_root
from tests.assets.model import ensure_model
from tests.assets.trained_draft import write_specialist
from tests.attacks.attack_rig import NAME, SPEC, AttackRig
from tests.cluster.cluster import Cluster
from tests.rig.installation import RESOURCE, Installation
from tests.rig.sync_api import SyncApi
from tests.traffic.prompts import Domain

pytest_plugins = ["tests.cluster.fixture"]


@pytest.fixture(scope="session")
def aurora(cluster: Cluster) -> Installation:
    installation = Installation(cluster)
    installation.install()
    return installation


@pytest.fixture(scope="session")
def rig(aurora: Installation) -> Iterator[AttackRig]:
    """A speculator that serves its untrained draft."""
    specialist = write_specialist(ensure_model(), Domain.EXTRACTION, cache_root() / "drafts")
    aurora.apply(NAME, SPEC)
    aurora.wait_until(NAME, "both pods serve version 0", lambda cr: cr.get("status", {}).get("updated") == "2/2", 600)
    cluster = aurora.cluster
    with new_client_from_config(str(cluster.kubeconfig)) as connection:
        yield AttackRig(aurora, SyncApi(connection), NAME, specialist)
    aurora.cluster.kubectl("delete", RESOURCE, NAME, "-n", aurora.namespace, "--timeout=120s")


@pytest.fixture(autouse=True)
def unharmed(rig: AttackRig) -> Iterator[None]:
    """After each attack no container has restarted, every pod serves the same draft, and clients are answered."""
    restarts, served = rig.restarts(), rig.checksums()
    yield
    assert rig.restarts() == {name: count for name, count in restarts.items() if name not in rig.killed}
    assert rig.checksums() == served
    rig.wait_until("everything is healthy", rig.is_healthy)
    assert rig.generate().status == 200


@pytest.fixture
def draft_folder(tmp_path: Path) -> Path:
    """Where a test writes the draft that it offers. The folder does not exist yet."""
    return tmp_path / "draft"
