"""The chart and the CRD of AuroraSpeculator: an upgrade updates the CRD, and uninstalling deletes nothing.

No operator runs here. Only Helm and the API server handle the CRD and the users' resources.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aurora_api.crd import FILE, REPOSITORY, TEMPLATE, crd
from tests.cluster.cluster import Cluster
from tests.cluster.command import CommandError
from tests.cluster.fixture import cluster

__all__ = ["cluster"]

CHART = REPOSITORY / "charts/aurora-operator"
IMAGES = CHART / "ci/images-values.yaml"
CRD = "auroraspeculators.aurora.dev"
RELEASE = "chart-test"
"""Name of the release and of its namespace."""
ADOPT = ("--take-ownership", "--force-conflicts")
"""The options that the README names. Another test or another release may have installed the CRD already."""


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


@pytest.fixture(name="clean_cluster")
def _clean_cluster(cluster: Cluster) -> Iterator[Cluster]:
    def clear() -> None:
        if "custom" in cluster.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name"):
            cluster.kubectl("delete", "auroraspeculator", "--all", "-n", RELEASE, "--timeout=30s")
        cluster.helm("uninstall", RELEASE, "-n", RELEASE, "--ignore-not-found")
        cluster.kubectl("delete", "namespace", RELEASE, "--ignore-not-found", "--timeout=90s")

    try:
        yield cluster
    finally:
        clear()


def upgrade(cluster: Cluster, chart: Path, *options: str) -> None:
    values = chart / "ci/images-values.yaml"
    cluster.helm("upgrade", "--install", RELEASE, chart, "-n", RELEASE, "--create-namespace", "-f", values, *options)
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=30s")


def fields(cluster: Cluster) -> dict[str, Any]:
    """The schema of ``spec.rollout`` in the installed CRD."""
    (version,) = cluster.get("crd", CRD)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    found: dict[str, Any] = spec["rollout"]["properties"]
    return found


def speculator() -> dict[str, Any]:
    return {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": "mine", "namespace": RELEASE},
        "spec": {
            "target": {"model": "m"},
            "store": {"bucket": "abc", "credentials": {"secretRef": {"name": "s3"}}},
            "rollout": {"pin": 3},
        },
    }


def test_the_charts_crd_equals_the_models_schema(cluster: Cluster) -> None:
    def printed(*options: str) -> dict[str, Any]:
        made: dict[str, Any] = yaml.safe_load(
            cluster.helm("template", "x", CHART, "-f", IMAGES, "-s", str(TEMPLATE.relative_to(CHART)), *options)
        )
        return made

    assert printed()["spec"] == crd()["spec"]
    assert printed()["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in printed("--set=crds.keep=false")["metadata"]
    without = cluster.helm("template", "x", CHART, "-f", IMAGES, "--set=crds.enabled=false")
    assert "CustomResourceDefinition" not in without


def test_an_upgrade_installs_the_new_schema_and_uninstalling_keeps_users_resources(
    clean_cluster: Cluster, earlier: Path
) -> None:
    upgrade(clean_cluster, earlier, *ADOPT)
    assert "pin" not in fields(clean_cluster)
    upgrade(clean_cluster, CHART)
    assert fields(clean_cluster)["pin"]["type"] == "integer"
    clean_cluster.apply(speculator())
    clean_cluster.helm("uninstall", RELEASE, "-n", RELEASE)
    assert clean_cluster.get("auroraspeculator", "mine", "-n", RELEASE)["spec"]["rollout"] == {
        "pin": 3, **{k: v["default"] for k, v in fields(clean_cluster).items() if "default" in v}
    }  # fmt: skip
    upgrade(clean_cluster, CHART)
    assert clean_cluster.get("auroraspeculator", "mine", "-n", RELEASE)["spec"]["rollout"]["pin"] == 3


def test_a_crd_that_helm_did_not_install_is_adopted_only_on_request(clean_cluster: Cluster) -> None:
    text = clean_cluster.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "json")
    if text:  # The CRD is not deleted, because another test's resources would be deleted with it.
        bare = json.loads(text)["metadata"]
        unset = [f"{key}-" for key in bare.get("annotations", {}) if key.startswith("meta.helm.sh/")]
        if unset:
            clean_cluster.kubectl("annotate", "crd", CRD, *unset)
        clean_cluster.kubectl("label", "crd", CRD, "app.kubernetes.io/managed-by-")
    clean_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", FILE)
    with pytest.raises(CommandError, match="invalid ownership metadata"):
        upgrade(clean_cluster, CHART)
    upgrade(clean_cluster, CHART, *ADOPT)
    assert clean_cluster.get("crd", CRD)["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
