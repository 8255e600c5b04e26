"""Where a cluster of a given name keeps its files, and which addresses it owns.

Two clusters never share a directory, a 10.N network, a cgroup or an interface, and all four follow from the name, so
that any process finds a running cluster again from its name alone.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

DEFAULT_NAME = "aurora"
DEFAULT_NETWORK = 99
_SOCKET_ROOM = 60
"""A unix socket's path ends at 107 characters, and containerd's longest one adds up to 40 to the directory."""


def default_name() -> str:
    return os.environ.get("CLUSTER_NAME") or DEFAULT_NAME


def cache_dir() -> Path:
    """Files that outlive a checkout: binaries and toolchains."""
    base = os.environ.get("AURORA_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aurora"


def state_root() -> Path:
    """One directory per cluster lives here. It is on disk and outside the checkout: images are kept between runs."""
    return Path(os.environ.get("AURORA_CLUSTER_STATE", "/var/lib/aurora-cluster"))


def checksum(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Layout:
    """A cluster's directory and its /16, of which node, host, pods and services are parts."""

    name: str
    directory: Path
    network: int

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
    def whole_cidr(self) -> str:
        return f"{self.prefix}.0.0/16"

    @property
    def pod_cidr(self) -> str:
        return f"{self.prefix}.64.0/18"

    @property
    def service_cidr(self) -> str:
        return f"{self.prefix}.128.0/18"

    @property
    def first_service_address(self) -> str:
        return f"{self.prefix}.128.1"

    @property
    def host_link(self) -> str:
        return f"aurora{self.network}"

    @property
    def cgroup(self) -> str:
        return f"kube-{checksum(self.directory)}"

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
        """Kept between runs, unlike the rest, because importing an image is the slowest part of a small test."""
        return self.directory / "containerd"


def network_of(name: str) -> int:
    """The second octet. Default clusters keep a fixed one; others are spread by name over 100..249 and then claimed."""
    return DEFAULT_NETWORK if name == DEFAULT_NAME else 100 + zlib.crc32(name.encode()) % 150


def layout(name: str = DEFAULT_NAME) -> Layout:
    """The layout of `name`. The network is claimed in a file, so that two names with one checksum do not collide."""
    if not name or not name.replace("-", "").isalnum() or not name.isascii():
        raise ValueError(f"a cluster's name is letters, digits and dashes, not {name!r}")
    directory = state_root() / name
    if len(str(directory)) > _SOCKET_ROOM:
        raise ValueError(
            f"{directory} is longer than {_SOCKET_ROOM} characters: set AURORA_CLUSTER_STATE to a shorter one"
        )
    claim = directory / "network"
    if claim.exists():
        return Layout(name, directory, int(claim.read_text()))
    taken = {int(path.read_text()) for path in state_root().glob("*/network")}
    network = network_of(name)
    while network in taken:
        network = 100 + (network - 99) % 150
    return Layout(name, directory, network)


def claim_network(cluster: Layout) -> None:
    """Make the layout's network this name's own. Called with the state root's lock held."""
    cluster.directory.mkdir(parents=True, exist_ok=True)
    (cluster.directory / "network").write_text(str(cluster.network))
