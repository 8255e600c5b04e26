"""What a cluster leaves on the host besides its one process: cgroup directories, a link and routes.

The kernel ends processes, mounts and the inner network with the process that holds the namespaces (see sandbox.py); the
things here are the ones that it does not take along.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.command import NotReadyError, attempt, run
from tests.cluster.layout import Layout


def hierarchies() -> list[tuple[Path, str]]:
    """(mount point, file system type) of each cgroup hierarchy: one with v2, one per controller with v1."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return [(Path(where), kind) for where, kind in mounts if kind in ("cgroup", "cgroup2")]


def make_cgroups(cluster: Layout) -> None:
    """The cluster's own root in each hierarchy. A limit written there holds for all of its pods together."""
    for mount, kind in hierarchies():
        directory = mount / cluster.cgroup
        directory.mkdir(exist_ok=True)
        controllers = mount / "cgroup.controllers"
        if kind == "cgroup2" and controllers.exists():
            wanted = " ".join(f"+{name}" for name in controllers.read_text().split())
            for parent in (mount, directory):
                if wanted:
                    (parent / "cgroup.subtree_control").write_text(wanted)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (mount / name).exists():
                (directory / name).write_text((mount / name).read_text())


def cgroup_directories(cluster: Layout) -> list[Path]:
    """Deepest first, the order in which they can be removed."""
    found = []
    for mount, _ in hierarchies():
        top = mount / cluster.cgroup
        if top.exists():
            found += sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
            found.append(top)
    return found


def remove_cgroups(cluster: Layout, timeout: float = 10) -> None:
    """A cgroup can be removed a moment after its last process has ended, so this tries for a while."""
    deadline = time.monotonic() + timeout
    while remaining := cgroup_directories(cluster):
        for directory in remaining:
            try:
                directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise NotReadyError(f"{directory} cannot be removed: a process may still be in it") from None
        time.sleep(0.05)


def make_link(cluster: Layout, holder: int) -> None:
    """A virtual cable between the host and the cluster's network, and routes over it to pods and services.

    The whole /16 is otherwise unreachable: without that, a client that outlives its cluster would send to the node's
    address by the default route, out of this machine.
    """
    refuse_addresses(cluster)
    run(*("ip", "link", "add", cluster.host_link, "type", "veth", "peer", "name", "eth0", "netns", str(holder)))
    run("ip", "address", "add", f"{cluster.host_address}/24", "dev", cluster.host_link)
    run("ip", "link", "set", cluster.host_link, "up")


def inner_network(cluster: Layout) -> str:
    """A script for the inside: the node's address, and a sink for Services that kube-proxy has not programmed yet.

    Nothing else is routed there. A packet into the sink (a bridge without ports: not every kernel has a dummy link) is
    lost, and TCP's next try a second later succeeds, as in any cluster with a default route. Without the sink the host,
    and an API server that calls a webhook, would get an error at once.
    """
    return f"""
ip address add {cluster.node_address}/24 dev eth0
ip link set eth0 up
ip link add services type bridge
ip link set services arp off up
ip route add {cluster.service_cidr} dev services src {cluster.node_address}
"""


def make_routes(cluster: Layout) -> None:
    for network in (cluster.pod_cidr, cluster.service_cidr):
        run("ip", "route", "replace", network, "via", cluster.node_address, "dev", cluster.host_link)


def refuse_addresses(cluster: Layout) -> None:
    run("ip", "route", "replace", "unreachable", cluster.whole_cidr, "metric", "4096")


def forget_addresses(cluster: Layout) -> None:
    attempt("ip", "route", "del", "unreachable", cluster.whole_cidr, "metric", "4096")


def link_exists(cluster: Layout) -> bool:
    return Path(f"/sys/class/net/{cluster.host_link}").exists()


def remove_link(cluster: Layout) -> None:
    """Routes over a link go with it."""
    if link_exists(cluster):
        attempt("ip", "link", "del", cluster.host_link)


def address_conflict(cluster: Layout) -> str | None:
    """A route of someone else's to the cluster's addresses, if there is one."""
    for line in run("ip", "-4", "route", "show", "root", cluster.whole_cidr).splitlines():
        if cluster.host_link not in line and not line.startswith("unreachable"):
            return line.strip()
    return None
