"""The files and addresses of a cluster.

Invariant: two clusters never share a directory, a 10.N network, a cgroup or a network interface. All four follow from
the cluster's name, so any process can find a running cluster by its name alone.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "aurora"
DEFAULT_NETWORK = 99
MAX_DIRECTORY_CHARACTERS = 60
"""A unix socket's path ends at 107 characters, and containerd's longest socket adds up to 40 to the directory."""


def default_name() -> str:
    return os.environ.get("CLUSTER_NAME") or DEFAULT_NAME


def state_root() -> Path:
    """The parent of all clusters' directories, on disk and outside the checkout: images are kept between runs."""
    return Path(os.environ.get("AURORA_CLUSTER_STATE", "/var/lib/aurora-cluster"))


@dataclass(frozen=True)
class Layout:
    """A cluster's directory and its /16 network, which holds the addresses of node, host, pods and services."""

    name: str
    directory: Path
    network: int
    """The second octet of the cluster's addresses: the N in 10.N."""

    @property
    def prefix(self) -> str:
        return f"10.{self.network}"

    @property
    def node_address(self) -> str:
        return f"{self.prefix}.0.1"

    @property
    def host_address(self) -> str:
        return f"{self.prefix}.0.254"

    @property
    def cluster_cidr(self) -> str:
        """All addresses of the cluster. Pods and services are parts of it."""
        return f"{self.prefix}.0.0/16"

    @property
    def pod_cidr(self) -> str:
        return f"{self.prefix}.64.0/18"

    @property
    def service_cidr(self) -> str:
        return f"{self.prefix}.128.0/18"

    @property
    def first_service_address(self) -> str:
        """The ClusterIP of the Service `kubernetes`: the first address of the service network."""
        return f"{self.prefix}.128.1"

    @property
    def host_link(self) -> str:
        """The name of the host's network interface to the cluster."""
        return f"aurora{self.network}"

    @property
    def cgroup(self) -> str:
        return f"kube-{hashlib.sha256(str(self.directory).encode()).hexdigest()[:10]}"

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def etc(self) -> Path:
        return self.directory / "etc"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    @property
    def containerd_root(self) -> Path:
        """containerd's data. It is kept between runs, because importing images is the slowest part of a small test."""
        return self.directory / "containerd"


def preferred_network(name: str) -> int:
    """The second octet that `name` gets if it is free: 99 for the default name, else one of 100 to 249 by hash."""
    return DEFAULT_NETWORK if name == DEFAULT_NAME else 100 + zlib.crc32(name.encode()) % 150


def layout(name: str = DEFAULT_NAME) -> Layout:
    """The layout of the cluster `name`.

    Each cluster records its network in a file (see `claim_network`). Two names with the same hash therefore get
    different networks.

    Raises:
        ValueError: The name has other characters than letters, digits and dashes, or the directory's path is too long.
    """
    if not name or not name.replace("-", "").isalnum() or not name.isascii():
        raise ValueError(f"{name!r} is not a name for a cluster: use letters, digits and dashes")
    directory = state_root() / name
    if len(str(directory)) > MAX_DIRECTORY_CHARACTERS:
        raise ValueError(
            f"the path {directory} is longer than {MAX_DIRECTORY_CHARACTERS} characters: "
            "set AURORA_CLUSTER_STATE to a shorter path"
        )
    claim = directory / "network"
    if claim.exists():
        return Layout(name, directory, int(claim.read_text()))
    taken = {int(path.read_text()) for path in state_root().glob("*/network")}
    network = preferred_network(name)
    while network in taken:
        network = 100 + (network - 99) % 150
    return Layout(name, directory, network)


def claim_network(cluster: Layout) -> None:
    """Record that the layout's network belongs to this cluster. The caller holds the state root's lock."""
    cluster.directory.mkdir(parents=True, exist_ok=True)
    (cluster.directory / "network").write_text(str(cluster.network))
