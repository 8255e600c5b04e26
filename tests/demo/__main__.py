"""``python -m tests.demo``: runs the whole loop on a real cluster: serve, trace, train, measure, swap.

The exit status is 0 only if a candidate was measured faster and every pod serves it, and no request failed. `make demo`
begins with start.py, which installs what this module needs. Environment variables:

- ``KEEP=1`` leaves the cluster running.
- ``BUDGET_SECONDS`` limits the wait for a learned draft, which begins when both pods serve (default: 2400).
- ``CI`` asks for plain lines where a terminal would get a live view.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from aurora_protocol.errors import ProtocolError
from aurora_store.errors import StoreError
from tests.cluster.cluster import Cluster
from tests.cluster.command import drop_proxies
from tests.demo.failure import EXPECTED_ERRORS, failure_lines, interruption_lines, save_cluster_logs
from tests.demo.handover import Handover
from tests.demo.jobs import Job, JobFailedError, JobRunner
from tests.demo.progress import evidence_table, learned_draft_serves_everywhere
from tests.demo.report_file import write_report
from tests.demo.show.observation import observe
from tests.demo.show.screen import Screen, wants_live_view
from tests.demo.show.show_state import ShowState, first_state, with_loop_done, with_observation
from tests.demo.speed_over_time import SpeedOverTime
from tests.demo.stage_clock import with_outcomes
from tests.demo.stages import CLUSTER_NAME, LOGS, ROOT, STOP_CLUSTER
from tests.demo.stop_signals import exit_on_stop_signals, undisturbed
from tests.rig.installation import RESOURCE, Installation
from tests.rig.small_speculator import ON_CPU
from tests.rig.store_inspection import check_objects, read_evidence
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.report import Summary

NAME = "chat"
SPEC = {**ON_CPU, "rollout": {"analysis": {"settleSeconds": 5, "watchSeconds": 15}}}
"""The demo's own settings of the small speculator. The waits are short, so that somebody can watch all of the demo."""
BUDGET_SECONDS = float(os.environ.get("BUDGET_SECONDS", "2400"))
LOOK_SECONDS = 10.0
"""Between two looks at the resource. Each look is a call of kubectl, which takes CPU from the cluster."""

DEMO_ERRORS = (*EXPECTED_ERRORS, StoreError, ProtocolError)
"""Failures that end the demo without a traceback."""


class DemoError(RuntimeError):
    """The demo ran to its end and did not show what it is for."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=(__doc__ or "").replace("``", ""))
    parser.add_argument("--handover", help="times before the demo began, from tests.demo.start")
    handover = Handover.from_json(parser.parse_args().handover)
    os.chdir(ROOT)
    exit_on_stop_signals()
    screen = Screen(first_state(handover), sys.stdout, live=wants_live_view(sys.stdout, os.environ))
    results: list[str] = []
    ending, status = [], 0
    try:
        with screen:
            prepare_and_run(screen, results)
    except DEMO_ERRORS as error:
        stage = error.failed.name if isinstance(error, JobFailedError) else screen.state.clock.failed or "results"
        ending, status = failure_lines(stage, error), 1
    except KeyboardInterrupt:
        ending, status = interruption_lines(screen.state.clock.left), 128 + signal.SIGINT
    except SystemExit as stop:
        ending, status = interruption_lines(screen.state.clock.left), int(stop.code or 0)
    finally:
        print("\n".join(results), flush=True)
    print("\n".join(ending), file=sys.stderr, flush=True)
    return status


def preparations() -> tuple[Job, ...]:
    """The programs that prepare the demo. The longest is first, because as many run at a time as there are cores."""
    python = (sys.executable, "-m")
    return (
        Job("prerequisites", (*python, "tests.cluster", "prerequisites")),
        Job("kubernetes", (*python, "tests.cluster", "build"), after=frozenset({"prerequisites"})),
        Job("model", (*python, "tests.assets.model")),
        Job("image", (*python, "tests.rig.local_image"), after=frozenset({"prerequisites"})),
    )


def prepare_and_run(screen: Screen, results: list[str]) -> None:
    """Prepare side by side, start the cluster as soon as its programs are there, run the demo, and clean up.

    Args:
        results: Gets what is to be printed after the view is gone.
    """
    jobs = preparations()
    names = frozenset(job.name for job in jobs)
    with JobRunner(jobs, LOGS, directory=ROOT) as runner:

        def wait_for(wanted: frozenset[str]) -> None:
            runner.wait_for(
                wanted,
                lambda outcomes: screen.update(lambda state, _: state.with_clock(with_outcomes(state.clock, outcomes))),
            )

        wait_for(names & {"prerequisites", "kubernetes"})
        with running_cluster(screen) as cluster:
            wait_for(names)
            drop_proxies()
            run_demo(screen, cluster, results)


@contextmanager
def running_cluster(screen: Screen) -> Iterator[Cluster]:
    """The demo's cluster, which ends with the block unless KEEP=1 is set or the cluster ran before."""
    with screen.stage("cluster"):
        cluster = Cluster.up(CLUSTER_NAME)
    try:
        yield cluster
    except Exception:
        _save_logs(screen, cluster)
        raise
    finally:
        if os.environ.get("KEEP") == "1":
            screen.say(f"KEEP=1: the cluster keeps running; export KUBECONFIG={cluster.kubeconfig}")
            screen.say(f"stop it with: {STOP_CLUSTER}")
        elif cluster.access.created:
            _remove(screen, cluster)


def _save_logs(screen: Screen, cluster: Cluster) -> None:
    """Keep the cluster's logs. A fault of that is named, and never hides the failure that the logs explain."""
    try:
        save_cluster_logs(cluster.kubectl, LOGS / "cluster.log")
    except DEMO_ERRORS as error:
        with suppress(OSError):
            screen.say(f"the logs of the cluster were not saved: {error}")


def _remove(screen: Screen, cluster: Cluster) -> None:
    """Stop the cluster. A signal cannot interrupt that, because half a removal leaves daemons behind."""
    with undisturbed():
        with suppress(OSError):  # the terminal may be gone
            screen.say("removing the cluster; Ctrl-C does not interrupt this")
        cluster.down()
    screen.say("cluster stopped and removed")


def run_demo(screen: Screen, cluster: Cluster, results: list[str]) -> None:
    """Install Aurora, send traffic until a learned draft serves on every pod, and collect what happened.

    Raises:
        DemoError: No candidate passed the gate in time, or a request failed.
    """
    aurora = Installation(cluster)
    with screen.stage("install"):
        aurora.install()
    with screen.stage("serve"):
        file = aurora.apply(NAME, SPEC)
        screen.say(f"created the speculator: kubectl apply -f {file}")
        aurora.wait_until(
            NAME,
            "both pods serve the initial draft",
            lambda cr: cr.get("status", {}).get("readyReplicas", 0) == cr["spec"]["serving"]["replicas"],
            timeout_seconds=600,
        )
    driver = TrafficDriver(Load(url=aurora.url(NAME), concurrency=4, options=RequestOptions(max_tokens=64)))
    driver.start()
    speed = SpeedOverTime()
    try:
        succeeded = watch(screen, aurora, driver, speed)
    finally:
        traffic = driver.stop()
    with screen.stage("results"):
        resource = aurora.get(NAME)
        collect_results(aurora, resource, traffic, succeeded, results)
        results.append(speed.table())
        if traffic.failed:
            raise DemoError(f'{traffic.failed} requests failed, and a swap must break none (promise 2, "Unbroken")')
    if not succeeded:
        raise DemoError(f"no candidate passed the gate within {BUDGET_SECONDS:.0f} s, so no draft was swapped")
    version = resource["status"]["active"]["version"]
    results.append(f"done: version {version} was measured faster and serves on every pod")


def watch(screen: Screen, aurora: Installation, driver: TrafficDriver, speed: SpeedOverTime) -> bool:
    """Show the loop until a learned draft serves everywhere or the time is over. Returns whether one does.

    The operator watches a promoted draft before its rollout ends, so there was traffic on the draft by then.
    """
    deadline = time.monotonic() + BUDGET_SECONDS
    while True:
        resource, traffic = aurora.get(NAME), driver.summary()
        succeeded = learned_draft_serves_everywhere(resource)
        screen.update(partial(_with_look, resource, traffic, succeeded))
        speed.add(resource, traffic)
        if succeeded:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)


def _with_look(resource: dict[str, Any], traffic: Summary, succeeded: bool, state: ShowState, now: float) -> ShowState:
    looked = with_observation(state, observe(resource, traffic), now)
    return with_loop_done(looked, now) if succeeded else looked


def collect_results(
    aurora: Installation, resource: dict[str, Any], traffic: Summary, succeeded: bool, results: list[str]
) -> None:
    """Add what a sceptical reader wants to see: kubectl's view, the evidence, checksums, store, traffic and report."""
    results.append(aurora.cluster.kubectl("get", RESOURCE, "-n", aurora.namespace))
    results.append(aurora.cluster.kubectl("get", RESOURCE, "-n", aurora.namespace, "-o", "wide"))
    if succeeded:
        results.append(evidence_table(read_evidence(aurora, NAME, resource["status"]["active"]["version"])))
        pods = resource["status"]["pods"]
        results += [f"  {pod['name']}: draft {pod['version']}, checksum {pod['checksum']}" for pod in pods]
    results.append(f"traffic: {traffic.requests} requests, {traffic.failed} failed {traffic.failures or ''}".rstrip())
    results.append(
        f"  {traffic.answer_tokens} answer tokens, {traffic.tokens_per_second:.1f} tok/s, "
        f"distinct 4-grams {traffic.distinct_4grams or 0:.2f}"
    )
    tools, store = aurora.cluster.access.tools, aurora.store()
    beside = ThreadPoolExecutor(max_workers=1)
    try:
        objects = beside.submit(check_objects, aurora, NAME)
        results.append(write_report(NAME, aurora.namespace, LOGS / "report.html", tools, store.endpoint))
        results.append(objects.result())
    finally:
        beside.shutdown(wait=False, cancel_futures=True)  # Ctrl-C must not wait for the check of the store


if __name__ == "__main__":
    sys.exit(main())
