"""``python -m tests.demo``: runs the whole loop on a real cluster: serve, trace, train, measure, swap.

The exit status is 0 only if a candidate was measured faster and every pod serves it, and no request failed.
Environment variables:

- ``KEEP=1`` leaves the cluster running.
- ``BUDGET_SECONDS`` limits the wait for a learned draft, which begins when both pods serve (default: 2400).
- ``CLUSTER`` selects the kind of cluster (tests/cluster/README.md).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.assets.model import ensure_model
from tests.cluster.cluster import Cluster
from tests.demo.progress import evidence_table, learned_draft_serves_everywhere, progress_line
from tests.demo.speed_over_time import SpeedOverTime
from tests.rig.installation import RESOURCE, Installation
from tests.rig.store_inspection import check_objects, read_evidence
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.report import Summary

NAME = "chat"
BUDGET_SECONDS = float(os.environ.get("BUDGET_SECONDS", "2400"))
PROGRESS_SECONDS = 15.0
STARTED = time.monotonic()


def log(text: str) -> None:
    """Print one line of progress, with minutes and seconds since the start."""
    elapsed = int(time.monotonic() - STARTED)
    print(f"[{elapsed // 60:02d}:{elapsed % 60:02d}] {text}", flush=True)


def main() -> int:
    keep = os.environ.get("KEEP") == "1"
    log("preparing the model SmolLM2-135M-Instruct and Kubernetes (the first run builds it from source)")
    ensure_model()
    cluster = Cluster.up("demo")
    server = json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    log(f"cluster is up: one node, Kubernetes {server}")
    try:
        return run_demo(cluster)
    finally:
        if keep:
            log(f"KEEP=1: the cluster keeps running; export KUBECONFIG={cluster.kubeconfig}")
            log("stop it with: .venv/bin/python -m tests.cluster --name demo down")
        elif cluster.access.created:
            cluster.down()
            log("cluster stopped and removed")


def run_demo(cluster: Cluster) -> int:
    """Install Aurora, send traffic until a learned draft serves on every pod, and print what happened.

    Returns:
        The exit status.
    """
    aurora = Installation(cluster)
    log("installing: helm install aurora charts/aurora-operator (with the embedded S3 store)")
    aurora.install()
    file = aurora.apply(NAME)
    log(f"created the speculator: kubectl apply -f {file}")
    aurora.wait_until(
        NAME,
        "both pods serve the initial draft",
        lambda cr: cr.get("status", {}).get("readyReplicas", 0) == cr["spec"]["serving"]["replicas"],
        timeout_seconds=600,
    )
    log("both pods serve version 0, an untrained draft; sending chat requests (sentence to JSON)")
    driver = TrafficDriver(Load(url=aurora.url(NAME), concurrency=4, options=RequestOptions(max_tokens=64)))
    driver.start()
    deadline = time.monotonic() + BUDGET_SECONDS
    succeeded, speed = False, SpeedOverTime()
    try:
        while not succeeded and time.monotonic() < deadline:
            time.sleep(PROGRESS_SECONDS)
            resource = aurora.get(NAME)
            traffic = driver.summary()
            log(progress_line(resource, traffic))
            speed.add(resource, traffic)
            succeeded = learned_draft_serves_everywhere(resource)
        if succeeded:
            time.sleep(PROGRESS_SECONDS)  # some traffic on the new draft
    finally:
        traffic = driver.stop()
    resource = aurora.get(NAME)
    print_results(aurora, resource, traffic, succeeded)
    print(speed.table())
    if not succeeded:
        log(f"failed: no candidate passed the gate within {BUDGET_SECONDS:.0f} s, so no draft was swapped")
        return 1
    if traffic.failed:
        log(f'failed: {traffic.failed} requests failed, and a swap must break none (promise 2, "Unbroken")')
        return 1
    log(f"done: version {resource['status']['active']['version']} was measured faster and serves on every pod")
    return 0


def print_results(aurora: Installation, resource: dict[str, Any], traffic: Summary, succeeded: bool) -> None:
    """Print what a sceptical reader wants to see: kubectl's view, the evidence, checksums, store and traffic."""
    print(aurora.cluster.kubectl("get", RESOURCE, "-n", aurora.namespace))
    print(aurora.cluster.kubectl("get", RESOURCE, "-n", aurora.namespace, "-o", "wide"))
    if succeeded:
        print(evidence_table(read_evidence(aurora, NAME, resource["status"]["active"]["version"])))
        for pod in resource["status"]["pods"]:
            print(f"  {pod['name']}: draft {pod['version']}, checksum {pod['checksum']}")
    print(check_objects(aurora, NAME))
    print(f"traffic: {traffic.requests} requests, {traffic.failed} failed {traffic.failures or ''}".rstrip())
    print(
        f"  {traffic.answer_tokens} answer tokens, {traffic.tokens_per_second:.1f} tok/s, "
        f"distinct 4-grams {traffic.distinct_4grams or 0:.2f}"
    )


if __name__ == "__main__":
    if Path.cwd() != Path(__file__).resolve().parents[2]:
        os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main())
