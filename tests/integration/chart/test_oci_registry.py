"""The chart is packaged, pushed to an OCI registry, signed there, and installed from there."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.command import CommandError, run
from tests.cluster.local.build import binaries
from tests.generated.generated_file import ROOT
from tests.rig.api_server import api_server
from tests.rig.go_tools import built_tool
from tests.rig.oci_registry import oci_registry
from tests.rig.rendered_chart import CHART, IMAGES, NAMESPACE, OPERATOR, RELEASE

PLAIN_HTTP = "--plain-http"
"""A registry on the loopback has no certificate."""
COSIGN = ROOT / "tests/rig/cosign"
OFFLINE = ("--trusted-root", "root.json", "--private-infrastructure", "--allow-insecure-registry")
"""Without the public log of signatures and its keys, so that a test asks nobody outside of this machine."""
NO_ROOTS = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
VERSION = str(yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])


@dataclass(frozen=True)
class PushedChart:
    """The chart in a registry."""

    reference: str
    digest: str
    package: Path
    homes: dict[str, str]

    def helm(self, *arguments: str | Path) -> str:
        """Run Helm with empty caches of its own. A failure raises ``CommandError``."""
        return run(binaries() / "helm", *arguments, env=self.homes)


@pytest.fixture(scope="module", name="chart")
def _chart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushedChart]:
    folder = tmp_path_factory.mktemp("helm")
    homes = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    helm = binaries() / "helm"
    run(helm, "package", CHART, "--destination", folder, env=homes)
    package = folder / f"{OPERATOR}-{VERSION}.tgz"
    with oci_registry() as registry:
        reference = f"oci://{registry}/charts"
        pushed = run(helm, "push", package, reference, PLAIN_HTTP, env=homes)
        found = re.search(r"sha256:[0-9a-f]{64}", pushed)
        yield PushedChart(f"{reference}/{OPERATOR}", found[0] if found else pushed, package, homes)


def test_the_package_holds_the_chart_and_nothing_of_its_tests(chart: PushedChart) -> None:
    with tarfile.open(chart.package) as archive:
        names = {name.removeprefix(f"{OPERATOR}/") for name in archive.getnames()}
    assert {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "templates/crd.yaml"} <= names
    assert not {name for name in names if name.startswith("ci/")}, "values of tests are no part of a release"


def test_what_the_registry_gives_is_what_was_pushed(chart: PushedChart, tmp_path: Path) -> None:
    chart.helm("pull", chart.reference, "--version", VERSION, "--destination", tmp_path, PLAIN_HTTP)
    (pulled,) = tmp_path.glob("*.tgz")
    assert pulled.read_bytes() == chart.package.read_bytes()
    by_digest = chart.helm("show", "chart", f"{chart.reference}@{chart.digest}", PLAIN_HTTP)
    assert yaml.safe_load(by_digest)["version"] == VERSION
    with pytest.raises(CommandError, match="not found"):
        chart.helm("pull", chart.reference, "--version", "9.9.9", "--destination", tmp_path, PLAIN_HTTP)


def test_the_chart_in_the_registry_renders_as_the_one_in_the_checkout(chart: PushedChart) -> None:
    common = ("-n", NAMESPACE, "-f", IMAGES)
    of_registry = chart.helm("template", RELEASE, chart.reference, "--version", VERSION, PLAIN_HTTP, *common)
    assert of_registry == chart.helm("template", RELEASE, CHART, *common)


def _cosign(folder: Path, *arguments: str | Path) -> str:
    """Run cosign with a home and a password of its own. A failure raises ``CommandError``."""
    environment = {"HOME": str(folder), "COSIGN_PASSWORD": "only for tests"}
    return run(built_tool(COSIGN), *arguments, env=environment, cwd=folder)


def test_a_signed_chart_is_verified_by_its_key_and_by_no_other(chart: PushedChart, tmp_path: Path) -> None:
    """Signed by digest, as ``docs/how-to/installing.md`` tells."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        folder.mkdir()
        (folder / "root.json").write_text(json.dumps(NO_ROOTS))
        _cosign(folder, "generate-key-pair")
    signed = f"{chart.reference.removeprefix('oci://')}@{chart.digest}"
    verify = ("verify", "--key", "cosign.pub", *OFFLINE, signed)
    with pytest.raises(CommandError, match="no signatures found"):
        _cosign(ours, *verify)
    log = ("--tlog-upload=false", "--allow-insecure-registry", "--yes")
    _cosign(ours, "sign", "--key", "cosign.key", *log, signed)
    (claim,) = json.loads(_cosign(ours, *verify))
    assert claim["critical"]["image"]["docker-manifest-digest"] == chart.digest
    with pytest.raises(CommandError, match="no matching signatures"):
        _cosign(other, *verify)


def test_a_cluster_installs_the_chart_from_the_registry(chart: PushedChart) -> None:
    with api_server() as server:
        arguments = ("-n", NAMESPACE, "--create-namespace", "-f", IMAGES, PLAIN_HTTP)
        server.helm("install", RELEASE, f"{chart.reference}@{chart.digest}", *arguments)
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        assert server.get("deployment", OPERATOR, "-n", NAMESPACE)["metadata"]["labels"]["helm.sh/chart"]
