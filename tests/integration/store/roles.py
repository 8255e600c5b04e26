"""A real S3 server that holds each part of a speculator to its documented IAM policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from aurora_operator.observe.store.store_reader import StoreReader
from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import FencedObjectStore, ObjectStore, StoreConfig
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import KEYS, record_keys
from tests.unit.operator.worlds import OWNER

POLICIES = Path(__file__).parents[3] / "docs/samples/iam"
ROLES = ("operator", "serving", "training", "validation")
DOCUMENTED_BUCKET = "my-aurora-bucket"
ROOT = "aurora/default/chat-01234567"
"""One of the roots that the policies are for."""
SIGNING_KEYS = {"serving": KeyName.CHANNEL, "validation": KeyName.EVIDENCE}
"""The key that the pods of a role hold."""


def documented_policy(role: str) -> str:
    """The policy of the documentation, but for several roots, so that tests have one each."""
    return (POLICIES / f"{role}.json").read_text().replace("default/chat/", "default/chat-????????/")


@contextlib.contextmanager
def store_with_roles() -> Iterator[S3]:
    """A server with an identity for each role, and the bucket of the documented policies."""
    with seaweedfs(policies={role: documented_policy(role) for role in ROLES}) as server:
        ObjectStore(server.config(bucket=DOCUMENTED_BUCKET)).ensure_bucket()
        yield server


def config_of(s3: S3, role: str | None, root: str = ROOT) -> StoreConfig:
    """The store as ``role`` opens it; None: with all rights."""
    return s3.config(bucket=DOCUMENTED_BUCKET, root=root, identity=role)


def store_of(s3: S3, role: str | None, root: str = ROOT) -> ObjectStore:
    """The store of the pods of ``role``, or the operator's. One attempt, so that a refusal comes soon."""
    config = config_of(s3, role, root)
    return ObjectStore(config, attempts=1) if role in (None, "operator") else FencedObjectStore(config, attempts=1)


def registry_of(s3: S3, role: str, root: str = ROOT) -> PodRegistry:
    """The records as the pods of ``role`` read and write them."""
    keys = {name: KEYS[name] for name in (SIGNING_KEYS.get(role),) if name is not None}
    return PodRegistry(store_of(s3, role, root), keys)


def operators_reader(config: StoreConfig) -> StoreReader:
    """The operator's reader of a root, with the keys that the operator made for the root's owner."""
    return StoreReader(config, record_keys(OWNER))
