"""The chart is packaged, pushed to an OCI registry, and installed from there."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.command import CommandError, run
from tests.cluster.local.build import binaries
from tests.rig.api_server import api_server
from tests.rig.oci_registry import oci_registry
from tests.rig.rendered_chart import CHART, IMAGES, NAMESPACE, OPERATOR, RELEASE

PLAIN_HTTP = "--plain-http"
"""A registry on the loopback has no certificate."""
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


def test_a_cluster_installs_the_chart_from_the_registry(chart: PushedChart) -> None:
    with api_server() as server:
        arguments = ("-n", NAMESPACE, "--create-namespace", "-f", IMAGES, PLAIN_HTTP)
        server.helm("install", RELEASE, chart.reference, "--version", VERSION, *arguments)
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        assert server.get("deployment", OPERATOR, "-n", NAMESPACE)["metadata"]["labels"]["helm.sh/chart"]
