"""The chart's embedded store, started as its pod starts it: who reaches it, and what it reads after an upgrade."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import ObjectMissing
from tests.assets.s3 import GRPC_PORT_OFFSET, S3, free_ports, seaweedfs
from tests.cluster.command import stop_process, wait_until
from tests.rig.chart.rendered_chart import Object, render, select

KEYS = ("an-access-key", "a-secret-key")
START_SECONDS, STOP_SECONDS = 90.0, 15.0
LISTENING, LOOPBACK = "0A", "0100007F"
"""Values in /proc/PID/net/tcp: the state of a listening socket, and the address 127.0.0.1."""


@pytest.fixture(scope="module", name="objects")
def _objects() -> list[Object]:
    access, secret = KEYS
    return render(f"--set=embeddedStore.enabled=true,embeddedStore.accessKey={access},embeddedStore.secretKey={secret}")


def container_of(objects: list[Object]) -> Any:
    (container,) = select(objects, "Deployment", "aurora-store")["spec"]["template"]["spec"]["containers"]
    return container


@contextlib.contextmanager
def started(objects: list[Object], folder: Path) -> Iterator[tuple[S3, int]]:
    """The store with its data in ``folder``, on free ports: the server, and the port of its filer."""
    container = container_of(objects)
    s3, master, volume, filer = free_ports(4)
    (config := folder.parent / "s3.json").write_text(
        select(objects, "Secret", "aurora-store-config")["stringData"]["s3.json"]
    )
    *shell, script = container["command"]
    places = {"/data": folder, "/etc/seaweedfs/s3.json": config}
    ports = {"-s3.port=8333": f"-s3.port={s3}", "-volume.port=9340": f"-volume.port={volume}"}
    for former, new in (places | ports).items():
        assert former in script
        script = script.replace(former, str(new))
    script = f"{script.rstrip()} -master.port={master} -filer.port={filer}"
    folder.mkdir(exist_ok=True)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": programs, "HOME": str(folder.parent), "WEED_JWT_FILER_SIGNING_KEY": KEYS[1]}
    endpoint = f"http://127.0.0.1:{s3}"
    with (folder.parent / "weed.log").open("wb") as log:
        process = subprocess.Popen([*shell, script], env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            wait_until("the embedded store answers", lambda: answers(endpoint), START_SECONDS)
            yield S3(endpoint, *KEYS, pid=process.pid), filer
        finally:
            stop_process(process, STOP_SECONDS)


def answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):  # noqa: S310 - an http endpoint of this process
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def open_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens beyond the loopback."""
    sockets = set[str]()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(file))
    found = set[int]()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == LISTENING and address != LOOPBACK and f"socket:[{fields[9]}]" in sockets:
                found.add(int(port, 16))
    return found


def write(config: StoreConfig) -> ObjectStore:
    """Write one object."""
    store = ObjectStore(replace(config, root="plain"))
    store.ensure_bucket()
    store.put("plain.json", b"plain")
    return store


def test_the_secret_key_of_the_store_signs_what_its_servers_ask_each_other(objects: list[Object]) -> None:
    """Without this key anybody who reaches the second port could make an identity with all rights."""
    env = {entry["name"]: entry.get("valueFrom") for entry in container_of(objects)["env"]}
    reference = {"name": "aurora-store", "key": "AWS_SECRET_ACCESS_KEY"}
    assert env["WEED_JWT_FILER_SIGNING_KEY"] == {"secretKeyRef": reference}


def test_only_the_s3_server_listens_beyond_the_loopback(objects: list[Object], tmp_path: Path) -> None:
    with started(objects, tmp_path / "data") as (server, filer):
        port = int(server.endpoint.rpartition(":")[2])
        assert open_ports(server.pid) == {port, port + GRPC_PORT_OFFSET}
        assert answers(f"http://127.0.0.1:{filer}"), "the filer runs"


def test_the_store_keeps_objects_over_a_restart_and_deletes_them(objects: list[Object], tmp_path: Path) -> None:
    with started(objects, tmp_path / "data") as (server, _):
        assert list(write(server.config()).list("")) == ["plain.json"]
    with started(objects, tmp_path / "data") as (server, _):
        store = ObjectStore(replace(server.config(), root="plain"))
        assert store.get("plain.json") == b"plain"
        store.delete("plain.json")
        with pytest.raises(ObjectMissing):
            store.get("plain.json")


def test_the_store_reads_what_weed_mini_wrote(objects: list[Object], tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "data") as former:
        write(former.config())
    with started(objects, tmp_path / "data") as (server, _):
        assert ObjectStore(replace(server.config(), root="plain")).get("plain.json") == b"plain"
