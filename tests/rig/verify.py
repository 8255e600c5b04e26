"""What a sceptic checks after the fact, from outside: the store's objects and the evidence."""

from __future__ import annotations

from aurora_api.records import Evidence
from aurora_runtime.store import ObjectStore, Registry, StoreConfig
from tests.rig.installation import BUCKET, Installation


def registry(aurora: Installation, name: str) -> Registry:
    """The speculator's records, read with the embedded store's credentials."""
    store = aurora.store()
    config = StoreConfig(BUCKET, aurora.root(name), store.endpoint, "us-east-1", store.access_key, store.secret_key)
    return Registry(ObjectStore(config))


def read_evidence(aurora: Installation, name: str, version: int) -> Evidence:
    """The evidence behind ``version``; its absence is an error: promise 1."""
    evidence = registry(aurora, name).evidence(version)
    if evidence is None:
        raise LookupError(f"no evidence for version {version}")
    return evidence
