"""How long does it take on a real cluster until the other pod of the operator acts after the leader was killed?

The chart is installed with its defaults on the local cluster, so two pods of the operator run. In each round every
process of the leader's container is killed (SIGKILL). Then the spec of a speculator without pods changes, and the round
ends when the Deployment shows the change. The store is real. The killed pod is then deleted and replaced, because the
kubelet restarts a container that was killed often with a growing delay.

Prints the seconds from before the kill to the change in the Deployment, as kubectl sees it. Exits with 1 when the pod
that was killed holds the Lease afterwards.

Takes about half a minute a round, and two minutes for the installation. Needs the build of Kubernetes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.bench_command import (
    bench_parser,
    commit,
    exit_on_sigterm,
    load_around,
    load_average,
    machine,
    provenance,
)
from tests.bench.markdown import markdown_table, median_and_quartiles
from tests.cluster.cluster import Cluster
from tests.cluster.command import drop_proxies, wait_until
from tests.isolation.idle_speculators import IdleSpeculators
from tests.rig.fault_injection import OPERATOR_SELECTOR, kill_container
from tests.rig.installation import SYSTEM_NAMESPACE, Installation

NAME = "failover"
READY_SECONDS = 180.0
APPLIED_SECONDS = 120.0


def leader(cluster: Cluster) -> str:
    """The pod that holds the operator's Lease. Empty while nobody does."""
    leases = cluster.get("lease", "-n", SYSTEM_NAMESPACE)["items"]
    (lease,) = (each for each in leases if "operator" in each["metadata"]["name"])
    return str(lease["spec"].get("holderIdentity") or "").rpartition("_")[0]


def ready_pods(cluster: Cluster) -> set[str]:
    """The operator's pods that are ready and not being deleted."""
    pods = cluster.get("pods", "-n", SYSTEM_NAMESPACE, "-l", OPERATOR_SELECTOR)["items"]
    return {pod["metadata"]["name"] for pod in pods if _is_ready(pod)}


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def one_round(aurora: Installation, speculators: IdleSpeculators) -> float:
    """Kill the leader. Returns the seconds until a change is applied, when two pods are ready again."""
    killed = leader(aurora.cluster)
    began = time.monotonic()
    kill_container(aurora, killed, "operator", SYSTEM_NAMESPACE)
    speculators.seconds_until_applied(NAME, APPLIED_SECONDS)
    seconds = time.monotonic() - began
    if leader(aurora.cluster) == killed:
        sys.exit(f"{killed} was killed and holds the Lease again; the standby did not take over")
    aurora.cluster.kubectl("delete", "pod", killed, "-n", SYSTEM_NAMESPACE, "--grace-period=0", "--force")
    wait_until("two pods of the operator are ready", lambda: len(ready_pods(aurora.cluster)) == 2, READY_SECONDS)
    return seconds


def measure(aurora: Installation, kills: int) -> list[float]:
    """The seconds of each round."""
    aurora.install()
    speculators, seconds = IdleSpeculators(aurora), list[float]()
    speculators.apply(NAME)
    wait_until("the speculator has its Deployment", lambda: speculators.child("deployment", NAME) is not None, 60)
    for number in range(kills):
        seconds.append(one_round(aurora, speculators))
        print(f"{number + 1}/{kills}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    speculators.delete(NAME)
    return seconds


def main() -> None:
    parser = bench_parser("tests.bench.operator.cluster_failover", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds to this file")
    options = parser.parse_args()
    exit_on_sigterm()
    load_before, cluster = load_average(), Cluster.up()
    drop_proxies()
    try:
        seconds = measure(Installation(cluster), options.kills)
    finally:
        if cluster.access.created:
            cluster.down()
    load = load_around(load_before)
    row = ("kill", len(seconds), median_and_quartiles(seconds), f"{max(seconds):.1f}")
    print(markdown_table(("fault", "rounds", "seconds, median [quartiles]", "maximum"), [row]))
    print(f"\n{provenance('tests.bench.operator.cluster_failover', load, commit())}")
    if options.json is not None:
        found = {"commit": commit(), "machine": machine(), "load": load, "seconds": seconds}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
