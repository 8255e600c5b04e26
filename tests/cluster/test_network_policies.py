"""The local cluster enforces NetworkPolicies, so that the policies of Aurora are tested wherever Aurora is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.connection_probe import ConnectionProbe, Outcome, start_probes
from tests.cluster.images.image_build import python_image
from tests.cluster.local import packet_queue
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.prerequisites import MissingPrerequisitesError, ensure_prerequisites

NAMESPACE = "policy-test"
IMAGE = "aurora.test/python:1"
PORT, CLOSED_PORT = 8080, 9
GUARDED, FRIEND = {"app": "guarded"}, {"access": "granted"}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "friends-only", "namespace": NAMESPACE},
    "spec": {
        "podSelector": {"matchLabels": GUARDED},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": FRIEND}}], "ports": [{"port": PORT, "protocol": "TCP"}]}],
    },
}


@dataclass(frozen=True)
class Pods:
    """A server behind a Service, and two clients. The policy admits one of the clients."""

    server: ConnectionProbe
    friend: ConnectionProbe
    stranger: ConnectionProbe
    server_address: str
    service_address: str

    @property
    def pod(self) -> str:
        return f"{self.server_address}:{PORT}"

    @property
    def service(self) -> str:
        return f"{self.service_address}:80"

    @property
    def closed_port(self) -> str:
        return f"{self.server_address}:{CLOSED_PORT}"


def _server(name: str) -> dict[str, Any]:
    """A pod that is ready when the node's probe reaches it."""
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["/usr/bin/python3", "-m", "http.server", str(PORT), "-d", "/etc"],
        "readinessProbe": {"httpGet": {"path": "/passwd", "port": PORT}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": GUARDED},
        "spec": {"containers": [container], "enableServiceLinks": False, "terminationGracePeriodSeconds": 0},
    }


def _wait_until_ready(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "-n", NAMESPACE, "--timeout=60s")


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    cluster.load_image(python_image(tmp_path_factory.mktemp("image") / "python.tar", IMAGE, Path("/usr/bin/python3")))
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    server = ConnectionProbe(cluster, NAMESPACE, "server")
    friend = ConnectionProbe(cluster, NAMESPACE, "friend", FRIEND)
    stranger = ConnectionProbe(cluster, NAMESPACE, "stranger")
    server.wait_for_account()
    cluster.apply(
        _server(server.pod),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "guarded", "namespace": NAMESPACE},
            "spec": {"selector": GUARDED, "ports": [{"port": 80, "targetPort": PORT}]},
        },
    )
    start_probes(IMAGE, friend, stranger)
    _wait_until_ready(cluster, server.pod)
    address = cluster.get("pod", server.pod, "-n", NAMESPACE)["status"]["podIP"]
    service_address = cluster.get("service", "guarded", "-n", NAMESPACE)["spec"]["clusterIP"]
    yield Pods(server, friend, stranger, address, service_address)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture
def policy(cluster: Cluster, pods: Pods) -> Iterator[None]:
    """A policy that admits the friend to one port of the server, in effect."""
    cluster.apply(POLICY)
    pods.stranger.wait_until({pods.pod: Outcome.DROPPED})
    yield
    cluster.kubectl("delete", "networkpolicy", "friends-only", "-n", NAMESPACE)


def test_without_a_policy_every_pod_reaches_every_pod(pods: Pods) -> None:
    for client in (pods.friend, pods.stranger):
        client.wait_until(
            {pods.pod: Outcome.CONNECTED, pods.service: Outcome.CONNECTED, pods.closed_port: Outcome.REFUSED}
        )


def test_a_pod_reaches_itself_through_its_service(pods: Pods) -> None:
    pods.server.wait_until({pods.service: Outcome.CONNECTED})


def test_a_policy_admits_the_pods_and_the_port_that_it_names(pods: Pods, policy: None) -> None:
    pods.friend.wait_until(
        {pods.pod: Outcome.CONNECTED, pods.service: Outcome.CONNECTED, pods.closed_port: Outcome.DROPPED}
    )
    assert set(pods.stranger.connect(pods.pod, pods.service, pods.closed_port).values()) == {Outcome.DROPPED}


def test_the_probes_of_the_node_pass_a_policy_that_does_not_name_the_node(
    cluster: Cluster, pods: Pods, policy: None
) -> None:
    cluster.apply(_server("later"))
    _wait_until_ready(cluster, "later")
    cluster.kubectl("delete", "pod", "later", "-n", NAMESPACE)


def test_no_pod_connects_to_another_while_nothing_judges_connections(cluster: Cluster, pods: Pods) -> None:
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.skip("stops a daemon of the local cluster")
    pods.friend.wait_until({pods.pod: Outcome.CONNECTED})
    local = LocalCluster(cluster.name)
    local.stop("network-policies")
    try:
        assert pods.friend.connect(pods.pod) == {pods.pod: Outcome.DROPPED}
    finally:
        local.start("network-policies")
    pods.friend.wait_until({pods.pod: Outcome.CONNECTED})


@pytest.mark.usefixtures("cluster")  # a machine that lacks something else is skipped
def test_a_kernel_that_cannot_queue_packets_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.skip("checks what the local cluster needs")
    monkeypatch.setattr(packet_queue, "RULE", ("iptables", "--append", "FORWARD", "--jump", "ABSENT"))
    with pytest.raises(MissingPrerequisitesError, match=r"run a kernel with .*_XT_TARGET_NFQUEUE .*NetworkPolicies"):
        ensure_prerequisites()
