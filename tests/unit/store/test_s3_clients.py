"""Clients are shared by settings, freed with their last user, and never show credentials."""

from __future__ import annotations

import gc
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import CredentialsMissing, StoreError
from aurora_store.s3_client import ClientSettings, S3Clients

SETTINGS = ClientSettings("http://127.0.0.1:1", "us-east-1", "access", "secret", 1, 20.0)


def test_users_with_equal_settings_share_a_client_and_others_do_not() -> None:
    clients = S3Clients()
    first = clients.client(SETTINGS)
    assert clients.client(replace(SETTINGS)) is first
    others = (
        replace(SETTINGS, endpoint="http://127.0.0.1:2"),
        replace(SETTINGS, region="eu-central-1"),
        replace(SETTINGS, secret_key="other"),  # noqa: S106 - made up
    )
    assert all(clients.client(other) is not first for other in others)


def test_a_client_is_freed_with_its_last_user() -> None:
    clients = S3Clients()
    kept = clients.client(SETTINGS)
    other = clients.client(replace(SETTINGS, region="eu-central-1"))
    assert len(clients._clients) == 2
    del other
    gc.collect()
    assert len(clients._clients) == 1
    assert clients.client(SETTINGS) is kept


def test_settings_never_show_credentials() -> None:
    assert "secret" not in repr(SETTINGS).replace("secret_key", "")
    assert "access" not in repr(SETTINGS).replace("access_key", "")


def test_a_client_without_credentials_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """An identity that the cloud provides later must be found."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    clients, ambient = S3Clients(), replace(SETTINGS, access_key=None, secret_key=None)
    with pytest.raises(CredentialsMissing, match="no credentials were found"):
        clients.client(ambient)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "later")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "later")
    assert clients.client(ambient) is not None


@pytest.mark.parametrize(
    ("endpoint", "request_line"),
    [
        (None, b"CONNECT bucket.s3.eu-central-1.amazonaws.com:443 "),
        ("https://store.example", b"CONNECT store.example:443 "),
        ("http://store.example", b"GET http://store.example/bucket/root/key "),
    ],
)
def test_a_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, request_line: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, ThreadPoolExecutor(1) as threads:
        proxy.settimeout(10)
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)

        def first_bytes() -> bytes:
            with proxy.accept()[0] as connection:
                return connection.recv(4096)

        asked = threads.submit(first_bytes)
        store = ObjectStore(StoreConfig("bucket", "root", endpoint, "eu-central-1", "access", "secret"), attempts=1)
        with pytest.raises(StoreError):
            store.get("key")
        assert asked.result().startswith(request_line)
