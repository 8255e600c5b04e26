"""A user's machine with the built plugin, and an API server with a speculator whose store has records."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from aurora_api import API_VERSION, KIND
from aurora_store import ObjectStore
from aurora_store.keys import root
from tests.assets.s3 import S3, seaweedfs
from tests.cluster.local.build import binaries
from tests.rig.api_server import ApiServer, api_server
from tests.rig.local_image import ROOT
from tests.unit.cli import report_example

PROGRAM: Final = ROOT / "build/plugin/bin/kubectl-aurora"
NAME: Final = "chat"
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Machine:
    """A user's machine with kubectl and the plugin, and no Python of this project."""

    home: Path

    def kubectl(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run kubectl to its end."""
        environment = {
            "PATH": f"{self.home / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "NO_COLOR": "1",
            **(env or {}),
        }
        command = [str(word) for word in ("kubectl", *arguments)]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="package", name="machine")
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: run make plugin"
    home = tmp_path_factory.mktemp("user") / "home"
    (home / "bin").mkdir(parents=True)
    os.symlink(binaries() / "kubectl", home / "bin/kubectl")
    os.symlink(PROGRAM, home / "bin/kubectl-aurora")
    return Machine(home)


@pytest.fixture(scope="package", name="server")
def _server(machine: Machine) -> Iterator[ApiServer]:
    """An API server with the speculator ``chat``, as the operator leaves it after a week."""
    with api_server() as server:
        server.kubectl("apply", "--server-side", "-f", ROOT / "crds/auroraspeculators.yaml")
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        spec = {
            "target": {"model": "org/model"},
            "store": {"bucket": "bucket", "credentials": {"secretRef": {"name": "s3"}}},
        }
        server.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": NAME}, "spec": spec})
        status = report_example.status().model_dump_json(by_alias=True, exclude_none=True)
        patch = ("patch", KIND, NAME, "--subresource=status", "--type=merge")
        server.kubectl(*patch, f'--patch={{"status":{status}}}')
        shutil.copy(server.kubeconfig, machine.home / "kubeconfig")
        yield server


@pytest.fixture(scope="package", name="store")
def _store(server: ApiServer) -> Iterator[S3]:
    """A store with the records of the speculator."""
    with seaweedfs() as s3:
        objects = ObjectStore(s3.config(bucket="bucket", root=root("aurora", None, "default", NAME)))
        objects.ensure_bucket()
        report_example.put(objects, report_example.records())
        yield s3
