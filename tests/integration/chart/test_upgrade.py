"""The chart, its CRD and a speculator through upgrades, a rollback and an uninstallation.

Only the API server runs here. ``tests/upgrade`` upgrades the chart under traffic, with pods.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api import API_VERSION, KIND
from aurora_api.crd import FILE, TEMPLATE, crd
from tests.cluster.command import CommandError
from tests.rig.api_server import ApiServer, api_server
from tests.rig.chart.rendered_chart import CHART, IMAGES, NAMESPACE, RELEASE, built_helm
from tests.rig.former_version import check_out_former_version
from tests.unit.operator.worlds import MINIMAL

RESOURCE = "auroraspeculators.aurora.dev"
NAME = "chat"


@pytest.fixture(name="bare")
def _bare() -> Iterator[ApiServer]:
    """An API server without the definition."""
    with api_server() as server:
        yield server


@pytest.fixture(name="earlier")
def _earlier(tmp_path: Path) -> Path:
    """A chart of an earlier version, without ``spec.rollout.pin``."""
    folder = tmp_path / CHART.name
    shutil.copytree(CHART, folder)
    template = folder / TEMPLATE.relative_to(CHART)
    kept, inside = [], 0
    for line in template.read_text().splitlines(keepends=True):
        indent = len(line) - len(line.lstrip())
        if line.strip() == "pin:":
            inside = indent
        elif not inside or indent <= inside:
            inside = 0
            kept.append(line)
    template.write_text("".join(kept))
    return folder


def upgrade(server: ApiServer, chart: Path, *options: str) -> None:
    server.helm("upgrade", "--install", RELEASE, chart, "-n", NAMESPACE, "--create-namespace", "-f", IMAGES, *options)
    server.kubectl("wait", "--for=condition=Established", f"crd/{RESOURCE}", "--timeout=30s")


def create_speculator(server: ApiServer, **parts: Any) -> None:
    metadata = {"name": NAME, "namespace": "default"}
    server.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": MINIMAL | parts})


def rollout_fields(server: ApiServer) -> dict[str, Any]:
    """The schema of ``spec.rollout`` in the installed CRD."""
    (version,) = server.get("crd", RESOURCE)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    found: dict[str, Any] = spec["rollout"]["properties"]
    return found


def test_a_speculator_survives_the_upgrade_of_the_chart_and_its_rollback(bare: ApiServer, tmp_path: Path) -> None:
    upgrade(bare, check_out_former_version(tmp_path) / "charts/aurora-operator")
    create_speculator(bare)
    uid = bare.get(RESOURCE, NAME)["metadata"]["uid"]
    upgrade(bare, CHART, "--force-conflicts")
    bare.kubectl("patch", RESOURCE, NAME, "--type=merge", "-p", '{"spec": {"serving": {"replicas": 3}}}')
    bare.helm("rollback", RELEASE, "-n", NAMESPACE, "--force-conflicts")
    bare.kubectl("patch", RESOURCE, NAME, "--type=merge", "-p", '{"spec": {"rollout": {"paused": true}}}')
    kept = bare.get(RESOURCE, NAME)
    assert kept["metadata"]["uid"] == uid
    assert kept["spec"]["target"]["model"] == MINIMAL["target"]["model"]
    assert (kept["spec"]["serving"]["replicas"], kept["spec"]["rollout"]["paused"]) == (3, True)


def test_the_charts_crd_equals_the_models_schema_and_can_be_left_out() -> None:
    def printed(*options: str) -> list[dict[str, Any]]:
        objects = yaml.load_all(built_helm("template", "x", CHART, "-f", IMAGES, *options), yaml.CSafeLoader)
        return [obj for obj in objects if obj and obj["kind"] == "CustomResourceDefinition"]

    (kept,), (deleted,) = printed(), printed("--set=crds.keep=false")
    assert kept["spec"] == crd()["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in deleted["metadata"]
    assert printed("--set=crds.enabled=false") == []


def test_an_upgrade_installs_the_new_schema_and_uninstalling_keeps_users_resources(
    bare: ApiServer, earlier: Path
) -> None:
    upgrade(bare, earlier)
    assert "pin" not in rollout_fields(bare)
    upgrade(bare, CHART)
    assert rollout_fields(bare)["pin"]["type"] == "integer"
    create_speculator(bare, rollout={"pin": 3})
    bare.helm("uninstall", RELEASE, "-n", NAMESPACE)
    defaults = {name: field["default"] for name, field in rollout_fields(bare).items() if "default" in field}
    assert bare.get(RESOURCE, NAME)["spec"]["rollout"] == {"pin": 3, **defaults}
    upgrade(bare, CHART)
    assert bare.get(RESOURCE, NAME)["spec"]["rollout"]["pin"] == 3


def test_a_crd_that_helm_did_not_install_is_adopted_only_on_request(bare: ApiServer) -> None:
    bare.kubectl("apply", "--server-side", "-f", FILE)
    with pytest.raises(CommandError, match="invalid ownership metadata"):
        upgrade(bare, CHART)
    upgrade(bare, CHART, "--take-ownership", "--force-conflicts")  # the options that the README names
    assert bare.get("crd", RESOURCE)["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
