"""The chart is packaged, pushed to an OCI registry, and installed from there."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.command import CommandError
from tests.rig.api_server import api_server
from tests.rig.chart.pushed_chart import PLAIN_HTTP, VERSION, PushedChart, pushed_chart
from tests.rig.chart.rendered_chart import CHART, IMAGES, NAMESPACE, OPERATOR, RELEASE


@pytest.fixture(scope="module", name="chart")
def _chart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PushedChart]:
    with pushed_chart(tmp_path_factory.mktemp("helm")) as chart:
        yield chart


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
        server.helm("install", RELEASE, f"{chart.reference}@{chart.digest}", *arguments)
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        assert server.get("deployment", OPERATOR, "-n", NAMESPACE)["metadata"]["labels"]["helm.sh/chart"]
