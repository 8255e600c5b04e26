"""These tests' own cluster fixture; see fixture.py."""

from tests.cluster.fixture import cluster

__all__ = ["cluster"]
