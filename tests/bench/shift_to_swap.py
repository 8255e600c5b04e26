"""How long does it take from a shift of traffic to a draft that learned the new traffic on every pod?

On the demo's cluster, clients ask for one kind of answer until a draft that learned it serves on every pod. Then they
turn to another kind. The bench ends when a draft that was measured after the shift serves on every pod.

Prints the seconds of each stage, and the measurements since the shift. The stages follow each other:

- capture: until the store holds a shard that was closed after the shift;
- training: until the trainer registers the draft that will be swapped to;
- waiting: until this draft's measurement begins, with the measurements of other drafts in the meantime;
- measuring: until the verdict;
- rolling: until every pod serves the draft, in steps of two seconds.

Exits with 1 when a request failed or no draft was swapped in time. Takes 20 to 40 minutes on two quiet cores
(estimated).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.bench.bench_command import bench_parser, commit, exit_on_sigterm, machine
from tests.bench.markdown import markdown_table
from tests.cluster.cluster import Cluster
from tests.demo.progress import learned_draft_serves_everywhere, progress_line
from tests.rig.installation import Installation
from tests.rig.store_inspection import registry
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.prompts import Domain

from aurora_protocol.evidence_records import Evidence
from aurora_runtime.pod_registry import PodRegistry

NAME = "chat"
BEFORE, AFTER = Domain.EXTRACTION, Domain.SQL
"""What clients ask for before and after the shift."""
CONCURRENCY = 4
MAX_TOKENS = 64
START_SECONDS = 600
STATE_SECONDS = 15.0
SWAP_SECONDS = 1800.0
"""For each of the two swaps."""
SHARDS_READ = 200
"""Newest shards among which the first one after the shift is found."""


@dataclass(frozen=True)
class Stage:
    """One part of the time from the shift to the swap, with the moment at which it ended."""

    name: str
    end: datetime


def seconds_of_stages(shift: datetime, stages: list[Stage]) -> dict[str, float]:
    """The seconds that each stage added. A stage that ended before the one before it added nothing."""
    seconds, before = dict[str, float](), shift
    for stage in stages:
        seconds[stage.name] = max(0.0, (stage.end - before).total_seconds())
        before = max(before, stage.end)
    return seconds


def first_shard_since(records: PodRegistry, shift: datetime) -> datetime:
    """When the first shard after ``shift`` was closed.

    Raises:
        LookupError: The store holds no such shard.
    """
    lineage = records.lineage()
    keys = records.newest_shards(lineage.number, SHARDS_READ) if lineage else []
    created = [records.shard_manifest(key).created for key in keys]
    if not (since := [when for when in created if when >= shift]):
        raise LookupError(f"the store holds no shard that was closed after {shift:%H:%M:%S}")
    return min(since)


def measurements_since(records: PodRegistry, shift: datetime) -> Iterator[Evidence]:
    """The last measurement of every version, if it ended after ``shift``. The bench has no key to verify it with."""
    for registration in records.registrations():
        evidence = records.evidence(registration.version) if registration.version else None
        if evidence is not None and evidence.finished >= shift:
            yield evidence


def report(records: PodRegistry, shift: datetime, version: int, served: datetime) -> str:
    """The stages of the swap to ``version``, which every pod serves since ``served``, and the measurements."""
    measured = sorted(measurements_since(records, shift), key=lambda evidence: evidence.started)
    passed = next(evidence for evidence in measured if evidence.version == version)
    stages = [
        Stage("capture", first_shard_since(records, shift)),
        Stage("training", records.registration(version).created),
        Stage("waiting", passed.started),
        Stage("measuring", passed.finished),
        Stage("rolling", served),
    ]
    total = (served - shift).total_seconds()
    rows = [
        [name, f"{seconds:.0f}", f"{seconds / total:.0%}"] for name, seconds in seconds_of_stages(shift, stages).items()
    ]
    table = markdown_table(["Stage", "Seconds", "Share"], [*rows, ["all", f"{total:.0f}", ""]])
    verdicts = markdown_table(
        ["Version", "Seconds since the shift", "Verdict", "Why it ended"],
        [
            [
                one.version,
                f"{(one.started - shift).total_seconds():.0f} to {(one.finished - shift).total_seconds():.0f}",
                one.verdict.kind.value,
                one.end.value if one.end else "",
            ]
            for one in measured
        ],
    )
    return f"{table}\n\n{verdicts}"


def run(cluster: Cluster) -> int:
    """Measure once, and return the exit status."""
    aurora = Installation(cluster)
    aurora.install()
    aurora.apply(NAME)
    aurora.wait_until(
        NAME,
        "all pods are ready",
        lambda cr: cr.get("status", {}).get("readyReplicas", 0) == cr["spec"]["serving"]["replicas"],
        START_SECONDS,
    )
    options = RequestOptions(max_tokens=MAX_TOKENS)
    driver = TrafficDriver(Load(aurora.url(NAME), domain=BEFORE, concurrency=CONCURRENCY, options=options))
    driver.start()
    try:
        first = _wait_for_swap(aurora, driver, 0)
        driver.switch_domain(AFTER)
        shift = datetime.now(UTC)
        print(f"version {first} serves; requests turn from {BEFORE} to {AFTER}", file=sys.stderr, flush=True)
        version = _wait_for_swap(aurora, driver, first)
        served = datetime.now(UTC)
    finally:
        traffic = driver.stop()
    print(f"{BEFORE} to {AFTER}, version {first} to {version}; {machine()}; commit {commit()}\n")
    print(report(registry(aurora, NAME), shift, version, served))
    print(f"\n{traffic.requests} requests, {traffic.failed} failed")
    return 1 if traffic.failed else 0


def _wait_for_swap(aurora: Installation, driver: TrafficDriver, former: int) -> int:
    """Wait until every pod serves a version after ``former``, and return it.

    Raises:
        TimeoutError: No such version serves on every pod in time.
    """
    deadline, next_line = time.monotonic() + SWAP_SECONDS, 0.0
    while time.monotonic() < deadline:
        resource = aurora.get(NAME)
        version: int = resource["status"]["active"]["version"]
        if version > former and learned_draft_serves_everywhere(resource):
            return version
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + STATE_SECONDS
            print(progress_line(resource, driver.summary()), file=sys.stderr, flush=True)
        time.sleep(2)
    raise TimeoutError(f"no version after {former} serves on every pod within {SWAP_SECONDS:.0f} s")


def main() -> int:
    bench_parser("tests.bench.shift_to_swap", __doc__).parse_args()
    exit_on_sigterm()
    cluster = Cluster.up("demo")
    try:
        return run(cluster)
    finally:
        if cluster.created:
            cluster.down()


if __name__ == "__main__":
    sys.exit(main())
