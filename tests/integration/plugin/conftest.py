"""The built plugin in a krew installation of its own, and an API server with a speculator whose store has records."""

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
from tests.plugin.krew_manifest import ROOT, Platform, archive_name
from tests.rig.api_server import ApiServer, api_server
from tests.rig.go_tools import built_tool
from tests.unit.cli import report_example

BUILT: Final = ROOT / "build/plugin"
NAME: Final = "chat"
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Krew:
    """A user's machine with kubectl and krew, and no Python of this project."""

    home: Path

    def kubectl(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run kubectl to its end."""
        environment = {
            "PATH": f"{self.home / 'krew/bin'}:{self.home / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "KREW_ROOT": str(self.home / "krew"),
            "KREW_NO_UPGRADE_CHECK": "1",
            "NO_COLOR": "1",
            **(env or {}),
        }
        command = [str(word) for word in ("kubectl", *arguments)]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=120)

    def install(self, archive: Path) -> Done:
        return self.kubectl("krew", "install", f"--manifest={BUILT / 'aurora.yaml'}", f"--archive={archive}")


def built_archive() -> Path:
    """The archive for this machine, which `make integration-plugin` builds first."""
    archive = BUILT / archive_name(Platform.of_this_machine())
    assert archive.exists(), f"{archive} is missing: run make plugin"
    return archive


def new_krew(home: Path) -> Krew:
    (home / "bin").mkdir(parents=True)
    os.symlink(binaries() / "kubectl", home / "bin/kubectl")
    os.symlink(built_tool(ROOT / "tests/rig/krew"), home / "bin/kubectl-krew")
    return Krew(home)


@pytest.fixture(scope="package", name="krew")
def _krew(tmp_path_factory: pytest.TempPathFactory) -> Krew:
    """A machine with the plugin installed."""
    krew = new_krew(tmp_path_factory.mktemp("user") / "home")
    done = krew.install(built_archive())
    assert done.returncode == 0, done.stderr
    return krew


@pytest.fixture(scope="package", name="server")
def _server(krew: Krew) -> Iterator[ApiServer]:
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
        shutil.copy(server.kubeconfig, krew.home / "kubeconfig")
        yield server


@pytest.fixture(scope="package", name="store")
def _store(server: ApiServer) -> Iterator[S3]:
    """A store with the records of the speculator."""
    uid = server.get(KIND, NAME)["metadata"]["uid"]
    with seaweedfs() as s3:
        objects = ObjectStore(s3.config(bucket="bucket", root=root("", "default", NAME, uid)))
        objects.ensure_bucket()
        report_example.put(objects, report_example.records())
        yield s3
