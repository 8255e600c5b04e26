"""Makes the `cluster` fixture available to the tests of this folder; see fixture.py."""

from tests.cluster.fixture import cluster

__all__ = ["cluster"]
