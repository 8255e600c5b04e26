"""One S3 store for the tests of this folder, and one cluster with one operator for the tests that need pods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aurora_operator.children.metadata import Owner
from tests.assets.s3 import S3, seaweedfs
from tests.cluster.cluster import Cluster
from tests.cluster.fixture import cluster
from tests.cluster.images.image_build import python_image
from tests.integration.operator.operator_rig import IMAGE, PYTHON, Rig, install_crd, namespace
from tests.integration.operator.store_rig import Speculator, speculator_with_a_draft

__all__ = ["cluster"]

NAMESPACE = "operator-test"


@pytest.fixture(scope="package")
def s3() -> Iterator[S3]:
    """A SeaweedFS. Each test has a bucket or a root of its own in it."""
    with seaweedfs() as server:
        yield server


@pytest.fixture
def owner(request: pytest.FixtureRequest) -> Owner:
    """An owner whose root no other test uses."""
    number = f"{abs(hash(request.node.nodeid)):016x}"
    return Owner(f"team-{number}", "chat", number, 1, "77")


@pytest.fixture
def speculator(s3: S3, owner: Owner) -> Speculator:
    """A speculator whose initial draft is active."""
    return speculator_with_a_draft(s3, owner)


@pytest.fixture(scope="package")
def crd(cluster: Cluster) -> Cluster:
    """The cluster, with the resource's definition."""
    install_crd(cluster)
    return cluster


@pytest.fixture(scope="package")
def shared_rig(crd: Cluster, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The operator, and a cluster that has the image of the stand-ins."""
    folder = tmp_path_factory.mktemp("operator")
    crd.load_image(python_image(folder / "image.tar", IMAGE, PYTHON))
    with namespace(crd, NAMESPACE, s3):
        rig = Rig(crd, NAMESPACE, s3, folder / "operator.log")
        try:
            yield rig
        finally:
            rig.kill()


@pytest.fixture(scope="module")
def operator(shared_rig: Rig) -> Iterator[Rig]:
    """The running operator. Each module creates speculators under names of its own.

    At a module's end the operator has not ended by itself, and has logged no error, kills included.
    """
    if not shared_rig.runs:
        shared_rig.start()
    yield shared_rig
    assert shared_rig.operator is None or shared_rig.runs, "the operator ended by itself"
    shared_rig.check_log()
