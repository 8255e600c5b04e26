"""What a sceptic checks after the fact, from outside: the store's objects and the evidence."""

from __future__ import annotations

from aurora_protocol.evidence_records import Evidence
from aurora_store import ObjectStore, Registry, StoreConfig
from tests.check_store import check
from tests.rig.installation import BUCKET, Installation


def _config(aurora: Installation, name: str) -> StoreConfig:
    store = aurora.store()
    return StoreConfig(BUCKET, aurora.root(name), store.endpoint, "us-east-1", store.access_key, store.secret_key)


def registry(aurora: Installation, name: str) -> Registry:
    """The speculator's records, read with the embedded store's credentials."""
    return Registry(ObjectStore(_config(aurora, name)))


def check_objects(aurora: Installation, name: str) -> str:
    """Promise 4 from outside, in one line; AssertionError names every object that breaks it."""
    result = check(_config(aurora, name))
    assert not result.violations, "\n".join(result.violations)
    assert result.counts, "the bucket holds nothing"
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(result.counts.items()))
    return f"store: {counted}; {len(result.in_flight)} in flight; every object is named and whole"


def read_evidence(aurora: Installation, name: str, version: int) -> Evidence:
    """The evidence behind ``version``; its absence is an error: promise 1."""
    evidence = registry(aurora, name).evidence(version)
    if evidence is None:
        raise LookupError(f"no evidence for version {version}")
    return evidence
