"""The keys of a mounted Secret are read anew for each request, and always both of one version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY, STORE_KEYS_VARIABLE
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import CredentialsMissing
from aurora_store.mounted_keys import MountedKeys
from aurora_store.s3_client import ClientSettings, S3Clients


def mount(folder: Path, version: str, **keys: str) -> None:
    """Replace the files of a Secret as the kubelet does: by one rename of the symlink that leads to their folder."""
    made, link = folder / f"..{version}", folder / "..data_tmp"
    made.mkdir(parents=True)
    for name, value in keys.items():
        (made / name).write_text(value)
    os.symlink(made.name, link)
    os.replace(link, folder / "..data")
    for name in (ACCESS_KEY, SECRET_KEY):
        (folder / name).unlink(missing_ok=True)
        if name in keys:
            os.symlink(f"..data/{name}", folder / name)


def pair(version: str) -> dict[str, str]:
    return {ACCESS_KEY: f"access-{version}", SECRET_KEY: f"secret-{version}\n"}


def test_both_keys_are_of_the_newest_version(tmp_path: Path) -> None:
    keys = MountedKeys(tmp_path)
    for version in ("1", "2"):
        mount(tmp_path, version, **pair(version))
        read = keys.get_frozen_credentials()
        assert (read.access_key, read.secret_key, read.token) == (f"access-{version}", f"secret-{version}", None)


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    for name, value in pair("1").items():
        (tmp_path / name).write_text(value)
    assert MountedKeys(tmp_path).get_frozen_credentials().access_key == "access-1"


@pytest.mark.parametrize("incomplete", [{}, {ACCESS_KEY: "a"}, {ACCESS_KEY: "a", SECRET_KEY: ""}])
def test_a_secret_that_comes_late_is_used_once_it_is_complete(tmp_path: Path, incomplete: dict[str, str]) -> None:
    keys = MountedKeys(tmp_path)
    mount(tmp_path, "1", **incomplete)
    with pytest.raises(CredentialsMissing, match=SECRET_KEY):
        keys.get_frozen_credentials()
    mount(tmp_path, "2", **pair("2"))
    assert keys.get_frozen_credentials().access_key == "access-2"


def test_keys_that_were_read_outlive_their_secret(tmp_path: Path) -> None:
    keys = MountedKeys(tmp_path)
    mount(tmp_path, "1", **pair("1"))
    before = keys.get_frozen_credentials()
    mount(tmp_path, "2")
    assert keys.get_frozen_credentials() == before


def test_only_clients_without_keys_of_their_own_use_the_mounted_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ACCESS_KEY, "of-the-environment")
    monkeypatch.setenv(SECRET_KEY, "of-the-environment")
    monkeypatch.setenv(STORE_KEYS_VARIABLE, str(tmp_path))
    mount(tmp_path, "1", **pair("1"))
    clients = S3Clients()
    settings = ClientSettings("http://127.0.0.1:1", "us-east-1", None, None, 1, 20.0)

    def access_key(own: str | None) -> str:
        keys = ClientSettings(settings.endpoint, settings.region, own, own, 1, 20.0)
        client: Any = clients.client(keys)
        return str(client._request_signer._credentials.get_frozen_credentials().access_key)

    assert access_key(None) == "access-1"
    assert access_key("own") == "own"


def test_a_store_without_mounted_keys_says_so_at_its_first_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_KEYS_VARIABLE, str(tmp_path))
    monkeypatch.setattr("aurora_store.objects.SHARED_CLIENTS", S3Clients())
    store = ObjectStore(StoreConfig("bucket", "root", "http://127.0.0.1:1"))
    with pytest.raises(CredentialsMissing, match="the mounted Secret lacks"):
        store.get("key")
