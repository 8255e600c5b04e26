"""``python -m tests.demo``: apply, serve, trace, train, measure, swap, on a real cluster with real parts.

It ends well only when a candidate was measured faster and serves on every pod. Environment: ``KEEP=1`` leaves the
cluster running, ``BUDGET_SECONDS`` bounds the loop after the pods are up, ``CLUSTER`` chooses the cluster.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.assets.model import ensure_model
from tests.cluster.cluster import Cluster
from tests.demo.progress import evidence_table, progress_line, served_everywhere
from tests.rig.installation import RESOURCE, Installation
from tests.rig.store_inspection import check_objects, read_evidence
from tests.traffic.driver import Driver, Load

NAME = "chat"
BUDGET_SECONDS = float(os.environ.get("BUDGET_SECONDS", "2400"))
TELL_SECONDS = 15.0
STARTED = time.monotonic()


def say(text: str) -> None:
    """One line of the story, with the minutes since the start."""
    elapsed = int(time.monotonic() - STARTED)
    print(f"[{elapsed // 60:02d}:{elapsed % 60:02d}] {text}", flush=True)


def main() -> int:
    keep = os.environ.get("KEEP") == "1"
    say("preparing: a real model (SmolLM2-135M-Instruct), Kubernetes built from source, an image of this checkout")
    ensure_model()
    cluster = Cluster.up("demo")
    server = json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    say(f"cluster: one node, Kubernetes {server}")
    try:
        return story(cluster)
    finally:
        if keep:
            say(f"KEEP=1: still running; export KUBECONFIG={cluster.kubeconfig}")
            say("end it with: .venv/bin/python -m tests.cluster --name demo down")
        elif cluster.access.created:
            cluster.down()
            say("cleaned up: cluster, pods, mounts and networks are gone")


def story(cluster: Cluster) -> int:
    """Install, apply, drive traffic until a validated swap reached every pod; returns the exit status."""
    aurora = Installation(cluster)
    say("helm install aurora charts/aurora-operator (with the embedded S3 store)")
    aurora.install()
    file = aurora.apply(NAME)
    say(f"kubectl apply -f {file}: 2 replicas, a trainer; the draft starts untrained")
    aurora.wait(
        NAME,
        "both pods serve the initial draft",
        lambda cr: cr.get("status", {}).get("readyReplicas", 0) == cr["spec"]["serving"]["replicas"],
        timeout=600,
    )
    say("both pods serve; sending chat requests (sentences to JSON) through the Service")
    driver = Driver(Load(url=aurora.url(NAME), concurrency=4, max_tokens=64, progress_seconds=1e9))
    driver.start()
    deadline = time.monotonic() + BUDGET_SECONDS
    done = False
    try:
        while not done and time.monotonic() < deadline:
            time.sleep(TELL_SECONDS)
            resource = aurora.get(NAME)
            say(progress_line(resource, driver.summary()))
            done = served_everywhere(resource)
        if done:
            time.sleep(TELL_SECONDS)
    finally:
        traffic = driver.stop()
    resource = aurora.get(NAME)
    print(cluster.kubectl("get", RESOURCE, "-n", aurora.namespace))
    print(cluster.kubectl("get", RESOURCE, "-n", aurora.namespace, "-o", "wide"))
    version = resource["status"].get("active", {}).get("version", 0)
    if done:
        print(evidence_table(read_evidence(aurora, NAME, version)))
        for pod in resource["status"]["pods"]:
            print(f"  {pod['name']}: draft {pod['version']}, checksum {pod['checksum']}")
    print(check_objects(aurora, NAME))
    print(f"traffic: {traffic.requests} requests, {traffic.failed} failed {traffic.failures or ''}".rstrip())
    print(
        f"  {traffic.answer_tokens} answer tokens, {traffic.tokens_per_second:.1f} tok/s, "
        f"distinct 4-grams {traffic.distinct_4grams or 0:.2f}"
    )
    if not done:
        say(f"no candidate earned a swap within {BUDGET_SECONDS:.0f} s: none was made")
        return 1
    if traffic.failed:
        say("requests failed: that breaks promise 2")
        return 1
    say(f"draft {version} was measured faster and serves on every pod")
    return 0


if __name__ == "__main__":
    if Path.cwd() != Path(__file__).resolve().parents[2]:
        os.chdir(Path(__file__).resolve().parents[2])
    sys.exit(main())
