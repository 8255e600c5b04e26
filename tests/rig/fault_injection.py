"""Faults that a node, a kernel, a network or an administrator causes, made on the local cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from tests.cluster.local.build import binaries
from tests.cluster.local.cluster import LocalCluster
from tests.rig.installation import SYSTEM, Installation

OPERATOR_SELECTOR = "app.kubernetes.io/name=aurora-operator"
NODE_DAEMONS = ("containerd", "kubelet", "kube-proxy")


def kill_container(aurora: Installation, pod: str, container: str, namespace: str | None = None) -> None:
    """SIGKILL every process of one container, as an out-of-memory kill or a segmentation fault would end it."""
    found = aurora.cluster.get("pod", pod, "-n", namespace or aurora.namespace)
    _ctr(_local(aurora), "tasks", "kill", "--all", "--signal", "SIGKILL", _identifier(found, container))


def kill_operator(aurora: Installation) -> None:
    """Delete the operator's pod without grace: its process ends between any two of its actions."""
    where = ("-n", SYSTEM, "-l", OPERATOR_SELECTOR)
    aurora.cluster.kubectl("delete", "pod", *where, "--grace-period=0", "--force", "--wait=false")


def evict_pod(aurora: Installation, pod: str) -> None:
    """End a pod as a drain does: with its grace period."""
    aurora.cluster.kubectl("delete", "pod", pod, "-n", aurora.namespace, "--wait=false")


def reboot_node(aurora: Installation) -> None:
    """End every container of the node, pause containers too, and the node's daemons, all without grace; start the
    daemons again. Disks stay, as in a reboot; the API server is not on this node, so to speak."""
    local = _local(aurora)
    for name in ("kubelet", "kube-proxy"):
        local.stop(name)
    for task in _ctr(local, "tasks", "list", "-q").split():
        _ctr(local, "tasks", "kill", "--all", "--signal", "SIGKILL", task)
    local.stop("containerd")
    for name in NODE_DAEMONS:
        local.start(name)


@dataclass(frozen=True)
class Cut:
    """TCP packets to ``port`` that are dropped in a pod: those that come ``INPUT``, but for the node's probes, or go
    ``OUTPUT``."""

    chain: str
    port: int


@contextmanager
def cut(aurora: Installation, pods: Sequence[dict[str, Any]], what: Cut) -> Iterator[None]:
    """Drop packets in the network namespaces of ``pods``, in silence as a broken network does."""
    local = _local(aurora)
    rule = [what.chain, "-p", "tcp", "--dport", str(what.port)]
    if what.chain == "INPUT":
        bridge = next(ip_network(local.layout.pod_cidr).hosts())  # where the node's probes come from
        rule += ["!", "-s", f"{bridge}/32"]
    rule += ["-j", "DROP"]
    inside = [_process(local, pod) for pod in pods]
    for process in inside:
        local.sandbox.run("nsenter", "--target", process, "--net", "iptables", "-I", *rule)
    try:
        yield
    finally:
        for process in inside:
            local.sandbox.run("nsenter", "--target", process, "--net", "iptables", "-D", *rule)


def _local(aurora: Installation) -> LocalCluster:
    return LocalCluster(aurora.cluster.name)


def _ctr(local: LocalCluster, *arguments: str) -> str:
    return local.sandbox.run(binaries() / "ctr", "-n", "k8s.io", *arguments)


def _identifier(pod: dict[str, Any], container: str) -> str:
    (status,) = (c for c in pod["status"]["containerStatuses"] if c["name"] == container)
    return str(status["containerID"].split("//")[1])


def _process(local: LocalCluster, pod: dict[str, Any]) -> str:
    """A process of the pod, in the sandbox's counting."""
    tasks = [line.split() for line in _ctr(local, "tasks", "list").splitlines()[1:]]
    running = {words[0]: words[1] for words in tasks if words[2] == "RUNNING"}
    names = [c["name"] for c in pod["spec"]["containers"]]
    return next(running[i] for i in (_identifier(pod, name) for name in names) if i in running)
