"""An administrator's rules say which namespace uses which store."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from aurora_operator.operator_config import OperatorConfig
from aurora_store.store_policy import StorePolicy, StoreRule
from tests.unit.operator.worlds import spec

IMAGES = {"AURORA_RUNTIME_IMAGE": "runtime:1", "AURORA_AGENT_IMAGE": "agent:1"}
KEYS = {"secretRef": {"name": "s3"}}
STORE = {"bucket": "bucket", "credentials": KEYS}
IDENTITY = {"serviceAccountName": "cloud"}


def refused(policy: StorePolicy, namespace: str = "team", root: str = "team/x/chat", **store: object) -> str:
    """The reason of the refusal; empty when the store is allowed."""
    given = spec(store=STORE | store).store
    refusal = policy.refusal(namespace, given, root)
    return refusal.reason if refusal else ""


def test_without_rules_every_store_is_allowed_with_keys() -> None:
    assert refused(StorePolicy()) == ""
    assert refused(StorePolicy(), endpoint="http://minio") == ""


def test_the_operators_own_identity_is_for_aws_only() -> None:
    assert refused(StorePolicy(), credentials=IDENTITY) == ""
    anywhere = StorePolicy((StoreRule(endpoint="http://minio"),))
    assert refused(anywhere, endpoint="http://minio", credentials=IDENTITY) == "KeysRequired"


@pytest.mark.parametrize(
    ("path", "allowed"), [("team/other", True), ("other/chat", False), ("teams/chat", False), ("x/team", False)]
)
def test_the_operators_own_identity_is_for_paths_of_the_namespace_only(path: str, allowed: bool) -> None:
    assert refused(StorePolicy(), credentials=IDENTITY, path=path) == ("" if allowed else "StoreNotAllowed")
    assert refused(StorePolicy(), path=path) == "", "keys of its own reach what they reach"


@pytest.mark.parametrize(
    ("namespace", "root", "store", "allowed"),
    [
        ("team", "team/x/chat", {}, True),
        ("other", "team/x/chat", {}, False),
        ("team", "team-b/x/chat", {}, False),
        ("team", "tea", {}, False),
        ("team", "team/x/chat", {"bucket": "other"}, False),
        ("team", "team/x/chat", {"endpoint": "http://minio:9000"}, False),
    ],
)
def test_a_rule_binds_a_namespace_to_a_bucket_and_a_folder(
    namespace: str, root: str, store: dict[str, object], allowed: bool
) -> None:
    policy = StorePolicy((StoreRule(("team",), bucket="bucket", prefix="/team/"),))
    assert (refused(policy, namespace, root, **store) == "") is allowed


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("http://minio.storage/", True),
        ("http://minio.storage", True),
        ("https://minio.storage", False),
        ("http://minio.storage:9000", False),
        ("http://minio.storage/path", False),
        ("http://minio.storage.evil.example", False),
    ],
)
def test_an_endpoint_is_compared_as_text(endpoint: str, allowed: bool) -> None:
    policy = StorePolicy((StoreRule(endpoint="http://minio.storage"),))
    assert (refused(policy, endpoint=endpoint) == "") is allowed


def test_an_impossible_port_gets_no_further_than_the_spec() -> None:
    for port in ("0080", "9000", "59999", "65535"):
        assert spec(store=STORE | {"endpoint": f"http://minio:{port}"})
    for port in ("65536", "65540", "65600", "66000", "70000", "99999", "100000"):
        with pytest.raises(ValidationError, match="endpoint"):
            spec(store=STORE | {"endpoint": f"http://minio:{port}"})


def test_the_policy_comes_from_the_environment() -> None:
    rules = [{"namespaces": ["team"], "endpoint": "http://minio", "prefix": "team"}, {"bucket": "all"}]
    env = {"AURORA_STORE_RULES": json.dumps(rules)}
    policy = OperatorConfig.from_env(IMAGES | env).stores
    assert policy.rules == (StoreRule(("team",), "http://minio", "", "team"), StoreRule(bucket="all"))
    assert OperatorConfig.from_env(IMAGES).stores == StorePolicy()
