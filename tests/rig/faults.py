"""Faults that a node, a kernel or an administrator causes, made on the local cluster."""

from __future__ import annotations

from tests.cluster.build import binaries
from tests.cluster.local import LocalCluster
from tests.rig.installation import SYSTEM, Installation


def kill_container(aurora: Installation, pod: str, container: str) -> None:
    """SIGKILL every process of one container, as an out-of-memory kill or a segmentation fault would end it."""
    status = aurora.cluster.get("pod", pod, "-n", aurora.namespace)["status"]
    (identifier,) = (c["containerID"].split("//")[1] for c in status["containerStatuses"] if c["name"] == container)
    local = LocalCluster(aurora.cluster.name)
    local.sandbox.run(binaries() / "ctr", "-n", "k8s.io", "tasks", "kill", "--all", "--signal", "SIGKILL", identifier)


def kill_operator(aurora: Installation) -> None:
    """Delete the operator's pod without grace: its process ends between any two of its actions."""
    selector = "app.kubernetes.io/name=aurora-operator"
    aurora.cluster.kubectl("delete", "pod", "-n", SYSTEM, "-l", selector, "--grace-period=0", "--force", "--wait=false")


def evict_pod(aurora: Installation, pod: str) -> None:
    """End a pod as a drain does: with its grace period."""
    aurora.cluster.kubectl("delete", "pod", pod, "-n", aurora.namespace, "--wait=false")
