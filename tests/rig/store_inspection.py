"""Checks of a speculator's store after a run: its objects and its evidence, read as an outsider reads them."""

from __future__ import annotations

from aurora_protocol.evidence_records import Evidence
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore, StoreConfig
from tests.check_store import check_store
from tests.rig.installation import BUCKET, Installation


def _store_config(aurora: Installation, name: str) -> StoreConfig:
    store = aurora.store()
    return StoreConfig(BUCKET, aurora.root(name), store.endpoint, "us-east-1", store.access_key, store.secret_key)


def registry(aurora: Installation, name: str) -> PodRegistry:
    """The speculator's records in the embedded store."""
    return PodRegistry(ObjectStore(_store_config(aurora, name)))


def check_objects(aurora: Installation, name: str) -> str:
    """Check promise 4 (every object is a valid record or data that a record names), and return a summary line.

    Raises:
        AssertionError: Objects break the promise. The message names each of them.
    """
    result = check_store(_store_config(aurora, name))
    assert not result.violations, "\n".join(result.violations)
    assert result.counts, "the store holds no object of this speculator"
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(result.counts.items()))
    return f"store: every object is valid ({counts}, {len(result.in_flight)} in flight)"


def read_evidence(aurora: Installation, name: str, version: int) -> Evidence:
    """The evidence with which ``version`` passed the gate (promise 1).

    Raises:
        LookupError: The store holds no evidence for the version.
    """
    evidence = registry(aurora, name).evidence(version)
    if evidence is None:
        raise LookupError(f"the store holds no evidence for version {version} of {name}")
    return evidence
