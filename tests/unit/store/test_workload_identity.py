"""A workload identity that cannot be fetched is named as the cause, and not the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.utils import ContainerMetadataFetcher

from aurora_store import ObjectStore, StoreConfig
from aurora_store import objects as objects_module
from aurora_store.errors import CredentialsMissing, StoreError
from aurora_store.s3_client import S3Clients
from tests.assets.faulty_store import faulty_store, whole

REFUSAL = "<ErrorResponse><Error><Code>{}</Code><Message>arn:secret</Message></Error></ErrorResponse>"


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the webhook of EKS sets in a pod whose ServiceAccount names a role."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "token"
    token.write_text("signed by the cluster")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/aurora-chat")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(objects_module, "SHARED_CLIENTS", S3Clients())


def objects() -> ObjectStore:
    return ObjectStore(StoreConfig("bucket", "root", None, "eu-central-1", None, None), attempts=1)


@pytest.mark.parametrize(
    ("status", "code", "shown"),
    [
        (403, "AccessDenied", "AccessDenied"),
        (400, "ExpiredToken", "ExpiredToken"),
        (503, "a", "HTTP 503"),
    ],
)
def test_a_refused_identity_names_the_trust_policy(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, shown: str
) -> None:
    with faulty_store(whole(status, REFUSAL.format(code).encode())) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
        with pytest.raises(StoreError) as error:
            objects().put("key", b"1")
    assert f"put key: AssumeRoleWithWebIdentity: {shown}; check the role, its trust policy" in str(error.value)
    assert "secret" not in str(error.value)


def test_an_agent_of_pod_identities_that_does_not_answer_is_not_taken_for_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/v1/credentials")
    monkeypatch.setattr(ContainerMetadataFetcher, "SLEEP_TIME", 0)
    with pytest.raises(CredentialsMissing, match="gave no credentials; check the role"):
        objects()
