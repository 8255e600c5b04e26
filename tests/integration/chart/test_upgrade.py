"""The chart is upgraded from the former version and rolled back, around a speculator that exists already.

Only the API server runs here. ``tests/upgrade`` upgrades the chart under traffic, with pods.
"""

from __future__ import annotations

from pathlib import Path

from tests.rig.api_server import api_server
from tests.rig.chart.rendered_chart import CHART, IMAGES, NAMESPACE, RELEASE
from tests.rig.former_version import check_out_former_version
from tests.unit.operator.worlds import MINIMAL

RESOURCE = "auroraspeculators.aurora.dev"


def test_a_speculator_survives_the_upgrade_of_the_chart_and_its_rollback(tmp_path: Path) -> None:
    former = check_out_former_version(tmp_path) / "charts/aurora-operator"
    with api_server() as server:
        server.kubectl("create", "namespace", NAMESPACE)
        server.helm("install", RELEASE, former, "-n", NAMESPACE, "-f", IMAGES)
        server.kubectl("wait", "--for=condition=Established", f"crd/{RESOURCE}", "--timeout=30s")
        metadata = {"name": "chat", "namespace": "default"}
        server.apply(
            {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "metadata": metadata, "spec": MINIMAL}
        )
        uid = server.get(RESOURCE, "chat")["metadata"]["uid"]

        server.helm("upgrade", RELEASE, CHART, "-n", NAMESPACE, "-f", IMAGES, "--force-conflicts")
        server.kubectl("patch", RESOURCE, "chat", "--type=merge", "-p", '{"spec": {"serving": {"replicas": 3}}}')
        server.helm("rollback", RELEASE, "-n", NAMESPACE, "--force-conflicts")
        server.kubectl("patch", RESOURCE, "chat", "--type=merge", "-p", '{"spec": {"rollout": {"paused": true}}}')

        kept = server.get(RESOURCE, "chat")
        assert kept["metadata"]["uid"] == uid
        assert kept["spec"]["target"]["model"] == MINIMAL["target"]["model"]
        assert (kept["spec"]["serving"]["replicas"], kept["spec"]["rollout"]["paused"]) == (3, True)
