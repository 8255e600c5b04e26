"""An author's endpoint leads to no address of the node or of the cluster, whatever its name resolves to."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3.util.connection

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import AddressRefused, StoreError
from aurora_store.policy.address_policy import AddressPolicy
from tests.assets.faulty_store import FaultyStore, faulty_store, whole

PUBLIC = AddressPolicy()
INSIDE = [
    "169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "127.0.0.1",
    "::1",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "::",
    "10.96.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "224.0.0.1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "2002:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused(address: str) -> None:
    assert not PUBLIC.allows("store.example", address)


@pytest.mark.parametrize("address", ["52.218.1.1", "2600:1fa0::1", "::ffff:52.218.1.1", "64:ff9b::34da:101"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert PUBLIC.allows("store.example", address)


def test_an_entry_allows_a_host_or_a_network_and_nothing_beside_it() -> None:
    policy = AddressPolicy.of(["Minio.Storage", "10.96.0.0/12", "192.168.1.7", "fd00::/8"])
    assert policy.allows("minio.storage.", "172.16.0.1")
    assert not policy.allows("other.storage", "172.16.0.1")
    assert policy.allows("other.storage", "10.96.0.1")
    assert not policy.allows("other.storage", "10.1.0.1")
    assert policy.allows("other.storage", "192.168.1.7")
    assert not policy.allows("other.storage", "192.168.1.8")
    assert policy.allows("other.storage", "fd00::1")


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "127.0.0.1", "::1"])
def test_a_host_name_and_a_wide_network_allow_neither_link_local_nor_loopback(address: str) -> None:
    assert not AddressPolicy.of(["minio.storage", "0.0.0.0/0", "::/0"]).allows("minio.storage", address)
    assert AddressPolicy.of(["169.254.0.0/16", "fe80::/10", "127.0.0.0/8", "::1"]).allows("minio.storage", address)


def test_a_network_may_be_given_by_any_of_its_addresses() -> None:
    assert AddressPolicy.of(["10.96.0.1/12", "fd00::1/8"]) == AddressPolicy.of(["10.96.0.0/12", "fd00::/8"])


@pytest.mark.parametrize("entry", ["", "minio/x", "10.0.0.0/33", "http://minio", "300.1.1.1"])
def test_an_entry_that_is_neither_a_host_nor_a_network_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError, match=r"neither a host name nor|does not appear to be|Only 4 octets|not permitted"):
        AddressPolicy.of([entry])


@pytest.fixture(name="store")
def _store() -> Iterator[FaultyStore]:
    with faulty_store(whole(200)) as fake:
        yield fake


def config(endpoint: str, policy: AddressPolicy | None) -> StoreConfig:
    return StoreConfig("bucket", "root", endpoint, None, "access", "secret", addresses=policy)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0"])
def test_no_spelling_of_the_loopback_is_connected_to(store: FaultyStore, host: str) -> None:
    objects = ObjectStore(config(f"http://{host}:{store.port}", PUBLIC), call_seconds=20)
    with pytest.raises(AddressRefused, match=r"stores\.internalHosts"):
        objects.get("key")
    assert store.requests == []


def test_tls_changes_nothing(store: FaultyStore) -> None:
    with pytest.raises(AddressRefused):
        ObjectStore(config(f"https://127.0.0.1:{store.port}", PUBLIC), call_seconds=20).get("key")


def test_an_allowed_address_is_connected_to(store: FaultyStore) -> None:
    ObjectStore(config(store.endpoint, AddressPolicy.of(["127.0.0.0/8"]))).put("key", b"data")
    assert store.requests == ["PUT /bucket/root/key"]


def test_two_policies_share_no_connection(store: FaultyStore) -> None:
    ObjectStore(config(store.endpoint, None)).put("key", b"data")
    with pytest.raises(AddressRefused):
        ObjectStore(config(store.endpoint, PUBLIC)).put("key", b"data")
    assert len(store.requests) == 1


def test_a_name_that_changes_its_address_is_judged_by_the_address_that_is_connected_to(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake resolver of DNS rebinding: a public address first, the loopback at every later look."""
    real, asked = socket.getaddrinfo, list[str]()

    def resolve(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return real(host, port, *arguments, **options)
        asked.append(host)
        return real("192.0.2.1" if len(asked) == 1 else "127.0.0.1", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    policy = AddressPolicy.of(["192.0.2.0/24"])
    objects = ObjectStore(config(f"http://rebinding.example:{store.port}", policy), attempts=3, call_seconds=20)
    with pytest.raises(StoreError):
        objects.get("key")
    assert store.requests == []


@pytest.mark.parametrize(("connect_seconds", "most_addresses"), [(0.0, 16), (0.7, 3)])
def test_a_name_with_many_addresses_holds_a_call_no_longer_than_its_deadline(
    monkeypatch: pytest.MonkeyPatch, connect_seconds: float, most_addresses: int
) -> None:
    """The client tries the request twice, with eight addresses each."""
    real, waits_seconds = socket.getaddrinfo, list[float]()

    def resolve(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host == "many.example":
            return [answer for n in range(2, 40) for answer in real(f"127.0.0.{n}", port, type=socket.SOCK_STREAM)]
        return real(host, port, *arguments, **options)

    def connect(_: tuple[str, int], timeout: float, **__: Any) -> socket.socket:
        waits_seconds.append(min(connect_seconds, timeout))
        time.sleep(waits_seconds[-1])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    policy = AddressPolicy.of(["127.0.0.0/8"])
    with pytest.raises(StoreError):
        ObjectStore(config("http://many.example:9", policy), attempts=1, call_seconds=2).get("key")
    assert 1 <= len(waits_seconds) <= most_addresses
    assert sum(waits_seconds) <= 2
