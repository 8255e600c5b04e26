"""``python -m tests.demo``: runs the whole loop on a real cluster: serve, trace, train, measure, swap.

The exit status is 0 only if a candidate was measured faster and every pod serves it, and no request failed. `make demo`
first installs what this module needs. Environment variables:

- ``KEEP=1`` leaves the cluster running.
- ``BUDGET_SECONDS`` limits the wait for a learned draft, which begins when both pods serve (default: 2400).
- ``CLUSTER_NAME`` names the cluster (default: demo).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aurora_protocol.errors import ProtocolError
from aurora_store.errors import StoreError
from tests.cluster.cluster import Cluster
from tests.cluster.command import drop_proxies, environment_without_proxies
from tests.demo.failure import save_cluster_logs
from tests.demo.machine_check import CLUSTER_NAME, STOP_CLUSTER
from tests.demo.progress import News, Story, evidence_table, learned_draft_serves_everywhere
from tests.demo.stop_signals import exit_on_stop_signals, undisturbed
from tests.rig.installation import RESOURCE, Installation
from tests.rig.local_image import ROOT
from tests.rig.store_inspection import check_objects, read_evidence
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.report import Summary

NAME = "chat"
SPEC = {"rollout": {"analysis": {"watchSeconds": 15}}}
"""The demo's own settings of the small speculator. The waits are short, so that somebody can watch all of the demo."""
LOGS = ROOT / "build/demo"
BUDGET_SECONDS = float(os.environ.get("BUDGET_SECONDS", "2400"))
LOOK_SECONDS = 10.0
"""Between two looks at the resource. Each look is a call of kubectl, which takes CPU from the cluster."""
REPORT_SECONDS = 120.0
DEMO_ERRORS = (
    *(RuntimeError, OSError, ValueError, LookupError, AssertionError, subprocess.SubprocessError),
    *(StoreError, ProtocolError),
)
"""Failures of a part of the demo, not of the demo's own code. They end the demo without a traceback."""


class DemoError(RuntimeError):
    """The demo ran to its end and did not show what it is for."""


def main() -> int:
    os.chdir(ROOT)
    exit_on_stop_signals()
    story = Story()
    try:
        with running_cluster(story) as cluster:
            run_demo(story, cluster)
    except DEMO_ERRORS as error:
        print(f"failed: {story.stage_now}\n  what happened: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"  logs of the cluster: {LOGS / 'cluster.log'}", file=sys.stderr)
        print("  do this: run `KEEP=1 make demo`, and look into the cluster that it keeps", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as stop:
        print(f"stopped in: {story.stage_now}; finished builds and downloads are kept", file=sys.stderr)
        return 128 + signal.SIGINT if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    return 0


@contextmanager
def running_cluster(story: Story) -> Iterator[Cluster]:
    """The demo's cluster, which ends with the block unless KEEP=1 is set."""
    with story.stage("a cluster of one node"):
        cluster = Cluster.up(CLUSTER_NAME)
    if not cluster.created:
        raise DemoError(f"the cluster of another demo runs: wait for its end, or stop it with {STOP_CLUSTER}")
    drop_proxies()
    try:
        yield cluster
    except Exception:
        with suppress(*DEMO_ERRORS):  # a fault of saving the logs must not hide the failure that the logs explain
            save_cluster_logs(cluster.kubectl, LOGS / "cluster.log")
        raise
    finally:
        if os.environ.get("KEEP") == "1":
            story.say(f"KEEP=1: the cluster keeps running; export KUBECONFIG={cluster.kubeconfig}")
            story.say(f"stop it with: {STOP_CLUSTER}")
        else:
            _remove(story, cluster)


def _remove(story: Story, cluster: Cluster) -> None:
    """Stop the cluster. A signal cannot interrupt that, because half a removal leaves daemons behind."""
    with undisturbed():
        with suppress(OSError):  # the terminal may be gone
            story.say("removing the cluster; Ctrl-C does not interrupt this")
        cluster.down()
        with suppress(OSError):
            story.say("cluster stopped and removed")


def run_demo(story: Story, cluster: Cluster) -> None:
    """Install Aurora, send traffic until a learned draft serves on every pod, and show what happened.

    Raises:
        DemoError: No candidate passed the gate in time, or a request failed.
    """
    aurora = Installation(cluster)
    with story.stage("operator and store"):
        aurora.install()
    with story.stage("two pods serve an untrained draft"):
        file = aurora.apply(NAME, SPEC)
        story.say(f"created the speculator: kubectl apply -f {file}")
        aurora.wait_until(
            NAME,
            "both pods serve the initial draft",
            lambda cr: cr.get("status", {}).get("updated") == "{0}/{0}".format(cr["spec"]["serving"]["replicas"]),
            timeout_seconds=600,
        )
    driver = TrafficDriver(Load(url=aurora.url(NAME), concurrency=4, options=RequestOptions(max_tokens=64)))
    driver.start()
    try:
        with story.stage("the draft learns from traffic, is measured, and is swapped into both pods"):
            watch(story, aurora, driver)
    finally:
        traffic = driver.stop()
    with story.stage("evidence, store and report"):
        resource = aurora.get(NAME)
        show_results(aurora, resource, traffic)
    if traffic.failed:
        raise DemoError(f'{traffic.failed} requests failed, and a swap must break none (promise 2, "Unbroken")')
    story.say(f"version {resource['status']['active']['version']} was measured faster and serves on every pod")


def watch(story: Story, aurora: Installation, driver: TrafficDriver) -> None:
    """Tell what happens until a learned draft serves everywhere. Raises DemoError when the time is over.

    The operator watches a promoted draft before its rollout ends, so there was traffic on the draft by then.
    """
    deadline, news = time.monotonic() + BUDGET_SECONDS, News()
    while True:
        resource = aurora.get(NAME)
        for line in news.lines(resource, driver.summary()):
            story.say(line)
        if learned_draft_serves_everywhere(resource):
            return
        if time.monotonic() > deadline:
            raise DemoError(f"no candidate passed the gate within {BUDGET_SECONDS:.0f} s, so no draft was swapped")
        time.sleep(LOOK_SECONDS)


def show_results(aurora: Installation, resource: dict[str, Any], traffic: Summary) -> None:
    """Print what a sceptical reader wants to see: resource, evidence, checksums, traffic, store and report."""
    print(aurora.cluster.kubectl("get", RESOURCE, "-n", aurora.namespace, "-o", "wide"))
    print(evidence_table(read_evidence(aurora, NAME, resource["status"]["active"]["version"])))
    for pod in resource["status"]["pods"]:
        print(f"  {pod['name']}: draft {pod['version']}, checksum {pod['checksum']}")
    print(f"traffic: {traffic.requests} requests, {traffic.failed} failed {traffic.failures or ''}".rstrip())
    print(
        f"  {traffic.answer_tokens} answer tokens, {traffic.tokens_per_second:.1f} tok/s, "
        f"distinct 4-grams {traffic.distinct_4grams or 0:.2f}"
    )
    print(check_objects(aurora, NAME))
    print(write_report(aurora), flush=True)


def write_report(aurora: Installation) -> str:
    """Write `kubectl aurora report` to build/demo, and return a line that says where it is, or why there is none.

    A demo without a report is still a demo, so no failure of the command ends the demo.
    """
    file = LOGS / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    # The speculator's own URL of the store is a name that only the cluster resolves.
    store = ["--endpoint", aurora.store().endpoint, "--use-secret"]
    options = [NAME, "--namespace", aurora.namespace, *store, "-o", str(file)]
    environment = environment_without_proxies(aurora.cluster.environment)
    command = [sys.executable, "-m", "aurora_cli", "report", *options]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=REPORT_SECONDS)
    except subprocess.CalledProcessError as error:
        return f"no report: {error.stderr.strip()}"
    except subprocess.TimeoutExpired:
        return f"no report: the command took longer than {REPORT_SECONDS:.0f} s"
    return f"report: {file}"


if __name__ == "__main__":
    sys.exit(main())
