"""Causes faults on the local cluster: killed containers, deleted pods, a node reboot and dropped packets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Literal

from tests.cluster.local.build import binaries
from tests.cluster.local.cluster import LocalCluster
from tests.rig.installation import SYSTEM_NAMESPACE, Installation

OPERATOR_SELECTOR = "app.kubernetes.io/name=aurora-operator"
NODE_DAEMONS = ("containerd", "kubelet", "kube-proxy")


def kill_container(aurora: Installation, pod: str, container: str, namespace: str | None = None) -> None:
    """SIGKILL every process of one container. An out-of-memory kill ends a container in the same way."""
    pod_object = aurora.cluster.get("pod", pod, "-n", namespace or aurora.namespace)
    _ctr(_local_cluster(aurora), "tasks", "kill", "--all", "--signal", "SIGKILL", _container_id(pod_object, container))


def kill_operator(aurora: Installation) -> None:
    """Delete every pod of the operator without a grace period, so that the leader ends between any two actions."""
    selection = ("-n", SYSTEM_NAMESPACE, "-l", OPERATOR_SELECTOR)
    aurora.cluster.kubectl("delete", "pod", *selection, "--grace-period=0", "--force", "--wait=false")


def evict_pod(aurora: Installation, pod: str) -> None:
    """Delete a pod with its grace period, as a drain does."""
    aurora.cluster.kubectl("delete", "pod", pod, "-n", aurora.namespace, "--wait=false")


def reboot_node(aurora: Installation) -> None:
    """Kill every container of the node (pause containers included) and its daemons, then start the daemons again.

    Disks keep their content, as in a reboot. The control plane keeps running, as if it were on another node.
    """
    local = _local_cluster(aurora)
    for name in ("kubelet", "kube-proxy"):
        local.stop(name)
    for task in _ctr(local, "tasks", "list", "-q").split():
        _ctr(local, "tasks", "kill", "--all", "--signal", "SIGKILL", task)
    local.stop("containerd")
    for name in NODE_DAEMONS:
        local.start(name)


@dataclass(frozen=True)
class PacketFilter:
    """TCP packets to ``port`` that a pod drops."""

    chain: Literal["INPUT", "OUTPUT"]
    """``INPUT``: packets to the pod, except the kubelet's probes. ``OUTPUT``: packets from the pod."""
    port: int


@contextmanager
def drop_packets(aurora: Installation, pods: Sequence[dict[str, Any]], packets: PacketFilter) -> Iterator[None]:
    """Drop packets in the network namespaces of ``pods`` while the context lasts.

    The sender gets no error, as in a broken network.
    """
    local = _local_cluster(aurora)
    rule = [packets.chain, "-p", "tcp", "--dport", str(packets.port)]
    if packets.chain == "INPUT":
        gateway = next(ip_network(local.layout.pod_cidr).hosts())  # the source of the kubelet's probes
        rule += ["!", "-s", f"{gateway}/32"]
    rule += ["-j", "DROP"]
    pids = [_process_id(local, pod) for pod in pods]
    for pid in pids:
        local.sandbox.run("nsenter", "--target", pid, "--net", "iptables", "-I", *rule)
    try:
        yield
    finally:
        for pid in pids:
            local.sandbox.run("nsenter", "--target", pid, "--net", "iptables", "-D", *rule)


def _local_cluster(aurora: Installation) -> LocalCluster:
    return LocalCluster(aurora.cluster.name)


def _ctr(local: LocalCluster, *arguments: str) -> str:
    return local.sandbox.run(binaries() / "ctr", "-n", "k8s.io", *arguments)


def _container_id(pod: dict[str, Any], container: str) -> str:
    (status,) = (c for c in pod["status"]["containerStatuses"] if c["name"] == container)
    return str(status["containerID"].split("//")[1])


def _process_id(local: LocalCluster, pod: dict[str, Any]) -> str:
    """The id of a process of the pod, in the sandbox's pid namespace."""
    tasks = [line.split() for line in _ctr(local, "tasks", "list").splitlines()[1:]]
    running = {words[0]: words[1] for words in tasks if words[2] == "RUNNING"}
    names = [c["name"] for c in pod["spec"]["containers"]]
    return next(running[i] for i in (_container_id(pod, name) for name in names) if i in running)
