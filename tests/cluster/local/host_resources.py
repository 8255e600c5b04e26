"""The cluster's resources on the host: cgroup directories, one network link and routes.

The kernel removes the cluster's processes, mounts and inner network together with the process that holds the
namespaces (see sandbox.py). It does not remove the resources in this module, so they are removed here.
"""

from __future__ import annotations

import errno
import shlex
import time
from pathlib import Path

from tests.cluster.command import NotReadyError, run, run_or_none
from tests.cluster.local import packet_queue
from tests.cluster.local.layout import Layout

CGROUP_POLL_SECONDS, CGROUP_TIMEOUT_SECONDS = 0.05, 10.0


def cgroup_hierarchies() -> list[tuple[Path, str]]:
    """(mount point, file system type) of each cgroup hierarchy: one with v2, one per controller with v1."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return [(Path(mount), kind) for mount, kind in mounts if kind in ("cgroup", "cgroup2")]


def create_cgroups(cluster: Layout) -> None:
    """Create the cluster's root in each hierarchy. A limit that is written there holds for all pods together."""
    for mount, kind in cgroup_hierarchies():
        directory = mount / cluster.cgroup
        directory.mkdir(exist_ok=True)
        controllers = mount / "cgroup.controllers"
        if kind == "cgroup2" and controllers.exists():
            enable_all = " ".join(f"+{name}" for name in controllers.read_text().split())
            for parent in (mount, directory):
                if enable_all:
                    _enable_controllers(parent / "cgroup.subtree_control", enable_all)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (mount / name).exists():
                (directory / name).write_text((mount / name).read_text())


def _enable_controllers(control: Path, controllers: str) -> None:
    try:
        control.write_text(controllers)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # Processes may only be in leaves (Linux, cgroup-v2.rst, "No Internal Process Constraint").
        raise NotReadyError(
            f"cannot write {control}, because processes are in that cgroup itself, as in a container: run on a machine "
            "or in a virtual machine with an init system"
        ) from None


def cgroup_directories(cluster: Layout) -> list[Path]:
    """All existing cgroup directories of the cluster, deepest first: the order in which they can be removed."""
    directories = []
    for mount, _ in cgroup_hierarchies():
        top = mount / cluster.cgroup
        if top.exists():
            directories += sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
            directories.append(top)
    return directories


def remove_cgroups(cluster: Layout) -> None:
    """Remove the cluster's cgroups. Retries, because the kernel refuses for a moment after the last process ended."""
    deadline = time.monotonic() + CGROUP_TIMEOUT_SECONDS
    while remaining := cgroup_directories(cluster):
        for directory in remaining:
            try:
                directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise NotReadyError(
                        f"cannot remove the cgroup {directory}: a process may still be in it (see its cgroup.procs)"
                    ) from None
        time.sleep(CGROUP_POLL_SECONDS)


def create_link(cluster: Layout, holder_pid: int) -> None:
    """Create a virtual cable (veth) between the host and the network of the process `holder_pid`."""
    block_addresses(cluster)
    run(*("ip", "link", "add", cluster.host_link, "type", "veth", "peer", "name", "eth0", "netns", str(holder_pid)))
    run("ip", "address", "add", f"{cluster.host_address}/24", "dev", cluster.host_link)
    run("ip", "link", "set", cluster.host_link, "up")


def inner_network_script(cluster: Layout) -> str:
    """A shell script for the inside of the sandbox: the node's address, a queue, and a sink for packets to Services.

    The sink takes packets to Services that kube-proxy has not programmed yet. The sink is a bridge without ports,
    because not every kernel has a dummy link. A packet into the sink is lost, and TCP's retry a second later succeeds,
    as in any cluster with a default route. Without the sink, the host and an API server that calls a webhook would get
    an error at once. No other network has a route.

    The queue holds new connections for the daemon that enforces NetworkPolicies.
    """
    return f"""
ip address add {cluster.node_address}/24 dev eth0
ip link set eth0 up
ip link add services type bridge
ip link set services arp off up
ip route add {cluster.service_cidr} dev services src {cluster.node_address}
{shlex.join(packet_queue.RULE)}
"""


def create_routes(cluster: Layout) -> None:
    """Route pod and service addresses from the host into the cluster."""
    for network in (cluster.pod_cidr, cluster.service_cidr):
        run("ip", "route", "replace", network, "via", cluster.node_address, "dev", cluster.host_link)


def block_addresses(cluster: Layout) -> None:
    """Make the cluster's /16 unreachable wherever no better route exists.

    Otherwise a client of a cluster that was killed would send packets for the node out of this machine, by the default
    route. The route stays until `down`.
    """
    run("ip", "route", "replace", "unreachable", cluster.cluster_cidr, "metric", "4096")


def unblock_addresses(cluster: Layout) -> None:
    run_or_none("ip", "route", "del", "unreachable", cluster.cluster_cidr, "metric", "4096")


def link_exists(cluster: Layout) -> bool:
    return Path(f"/sys/class/net/{cluster.host_link}").exists()


def remove_link(cluster: Layout) -> None:
    """Remove the link. The kernel removes the routes over the link with it."""
    if link_exists(cluster):
        run_or_none("ip", "link", "del", cluster.host_link)


def conflicting_route(cluster: Layout) -> str | None:
    """A route to the cluster's addresses that does not belong to the cluster, or None."""
    for line in run("ip", "-4", "route", "show", "root", cluster.cluster_cidr).splitlines():
        if cluster.host_link not in line and not line.startswith("unreachable"):
            return line.strip()
    return None
