"""One speculator's store takes the operator away from no other speculator."""

from __future__ import annotations

import base64
import re
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest

from tests.assets.faulty_store import Answer, endless_body, faulty_store, redirect
from tests.cluster.command import wait_until
from tests.isolation.idle_speculators import GOOD_ENDPOINT, IdleSpeculators
from tests.rig.fault_injection import OPERATOR_SELECTOR
from tests.rig.installation import RESOURCE, SYSTEM_NAMESPACE, Installation
from tests.rig.store_inspection import registry

pytestmark = pytest.mark.timeout(900)
HOSTILE = tuple(f"hostile-{number}" for number in range(64))
APPLY_SECONDS = 30.0
"""Bound of the time from a spec change to the changed Deployment, beside 64 hostile stores on two cores."""
CORRECTED_SECONDS = 15.0
"""Bound of the time from a corrected endpoint to the read with it. A change of the spec takes effect at once, and an
operator that only looked again after its backoff would take up to 30 s."""
CORRECTED_SECRET_SECONDS = 120.0
"""The same for a corrected Secret: read again after up to 60 s, and the store after up to 30 s."""
MAX_GROWTH_BYTES = 100 << 20
RECORD_SECONDS = 300.0
"""The operator reads the records of a speculator at rest at least once in this time, also after a fault."""


def _operator_pods(aurora: Installation) -> list[dict[str, Any]]:
    selection = ("-n", SYSTEM_NAMESPACE, "-l", OPERATOR_SELECTOR)
    pods: list[dict[str, Any]] = aurora.cluster.get("pods", *selection)["items"]
    return pods


def _restarts(aurora: Installation) -> int:
    pods = _operator_pods(aurora)
    return sum(c["restartCount"] for pod in pods for c in pod["status"]["containerStatuses"])


def _wait_for_deployments(speculators: IdleSpeculators, names: Sequence[str]) -> None:
    """Wait until the operator has reconciled each of the speculators once."""
    wait_until("their Deployments", lambda: all(speculators.child("deployment", name) for name in names), 180)


def _leader(aurora: Installation) -> str:
    """The name of the operator's pod that acts, from its own metrics."""
    for pod in _operator_pods(aurora):
        address = pod["status"]["podIP"]
        port = next(p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"] if p["name"] == "metrics")
        with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=30) as answer:
            if re.search(r"^aurora_operator_leading 1", answer.read().decode(), re.M):
                return str(pod["metadata"]["name"])
    raise AssertionError("no pod of the operator leads")


def _peak_memory_bytes(aurora: Installation, pod: str) -> int:
    """The most resident memory of an operator's process since its start. Compare it with an earlier peak only."""
    status = aurora.cluster.kubectl("exec", pod, "-n", SYSTEM_NAMESPACE, "--", "cat", "/proc/1/status")
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.M)[0]) << 10


def _seconds_until_ready(
    speculators: IdleSpeculators, name: str, began_seconds: float, timeout_seconds: float
) -> float:
    """Seconds from ``began_seconds`` until the speculator's store is read."""
    wait_until(
        f"the store of {name} is read with the corrected settings",
        lambda: speculators.condition(name, "StorageReady").get("status") == "True",
        timeout_seconds,
    )
    return time.monotonic() - began_seconds


@pytest.fixture
def healthy(speculators: IdleSpeculators) -> str:
    """The name of a speculator with a good store, applied once already."""
    speculators.apply("healthy")
    wait_until(
        "the healthy speculator's Deployment exists", lambda: speculators.child("deployment", "healthy") is not None, 90
    )
    return "healthy"


@pytest.mark.parametrize(
    "answer", [pytest.param(endless_body(200), id="endless"), pytest.param(redirect, id="redirect")]
)
def test_64_hostile_stores_do_not_delay_a_healthy_speculator(
    speculators: IdleSpeculators, healthy: str, answer: Answer
) -> None:
    aurora = speculators.aurora
    restarts, leader = _restarts(aurora), _leader(aurora)
    peak_bytes = _peak_memory_bytes(aurora, leader)
    with faulty_store(answer, address=aurora.cluster.host_address) as fake:
        speculators.apply(*HOSTILE, endpoint=fake.endpoint)
        wait_until(
            "the operator reports a hostile store",
            lambda: speculators.condition(HOSTILE[-1], "StorageReady").get("status") == "False",
            180,
        )
        seconds = [speculators.seconds_until_applied(healthy, APPLY_SECONDS) for _ in range(3)]
        growth_bytes = _peak_memory_bytes(aurora, leader) - peak_bytes
        message = speculators.condition(HOSTILE[-1], "StorageReady")["message"]
        print(f"applied after {seconds} s, peak memory grew by {growth_bytes / 1e6:.0f} MB; {message}")
        # Settings that are corrected take effect while calls with the old settings still hang.
        began_seconds = time.monotonic()
        speculators.apply(HOSTILE[0], endpoint=GOOD_ENDPOINT)
        corrected = _seconds_until_ready(speculators, HOSTILE[0], began_seconds, CORRECTED_SECONDS)
    print(f"a corrected endpoint was used after {corrected:.1f} s")
    assert len(message) <= 1000
    assert growth_bytes < MAX_GROWTH_BYTES
    assert _restarts(aurora) == restarts


def test_a_speculator_that_is_made_and_deleted_64_times_leaves_nothing_behind(
    speculators: IdleSpeculators, healthy: str
) -> None:
    with faulty_store(endless_body(200), address=speculators.aurora.cluster.host_address) as fake:
        for start in range(0, 64, 8):
            names = HOSTILE[start : start + 8]
            speculators.apply(*names, endpoint=fake.endpoint)
            _wait_for_deployments(speculators, names)
            speculators.delete(*names)
        seconds = speculators.seconds_until_applied(healthy, APPLY_SECONDS)
    print(f"applied after {seconds:.1f} s")


def test_records_and_settings_that_do_not_parse_never_end_a_loop(speculators: IdleSpeculators, healthy: str) -> None:
    aurora = speculators.aurora
    speculators.apply("odd-host", endpoint="http://no-such-host.invalid:9000")
    aurora.cluster.kubectl(
        *("annotate", RESOURCE, healthy, "-n", aurora.namespace, f"aurora.dev/abort={'9' * 5000}", "--overwrite")
    )
    speculators.seconds_until_applied(healthy, APPLY_SECONDS)
    aurora.cluster.kubectl("annotate", RESOURCE, healthy, "-n", aurora.namespace, "aurora.dev/abort-")
    wait_until(
        "the unknown host is reported",
        lambda: speculators.condition("odd-host", "StorageReady").get("status") == "False",
        120,
    )
    began_seconds = time.monotonic()
    speculators.apply("odd-host")
    corrected = _seconds_until_ready(speculators, "odd-host", began_seconds, CORRECTED_SECONDS)
    print(f"a corrected endpoint was used after {corrected:.1f} s")


def test_a_foreign_object_among_the_records_is_named_and_its_removal_is_enough(
    speculators: IdleSpeculators, healthy: str
) -> None:
    objects = registry(speculators.aurora, healthy).objects
    objects.put("lineage/zzz.json", b"{}")
    wait_until(
        "the foreign object is named",
        lambda: "lineage/zzz.json" in speculators.condition(healthy, "StorageReady").get("message", ""),
        RECORD_SECONDS,
    )
    speculators.seconds_until_applied(healthy, APPLY_SECONDS)
    objects.delete("lineage/zzz.json")
    wait_until(
        "the store is read again",
        lambda: speculators.condition(healthy, "StorageReady").get("status") == "True",
        RECORD_SECONDS,
    )


def test_a_secret_that_is_corrected_is_used_without_a_restart(speculators: IdleSpeculators) -> None:
    cluster, namespace = speculators.aurora.cluster, speculators.aurora.namespace
    good = cluster.get("secret", "aurora-store", "-n", namespace)["data"]
    bad = {**good, "AWS_SECRET_ACCESS_KEY": base64.b64encode(b"wrong").decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aurora-store"}}
    cluster.apply({**secret, "data": bad}, namespace=namespace)
    try:
        speculators.apply("keys")
        wait_until(
            "the wrong key is reported",
            lambda: speculators.condition("keys", "StorageReady").get("status") == "False",
            120,
        )
    finally:
        began_seconds = time.monotonic()
        cluster.apply({**secret, "data": good}, namespace=namespace)
    corrected = _seconds_until_ready(speculators, "keys", began_seconds, CORRECTED_SECRET_SECONDS)
    print(f"a corrected Secret was used after {corrected:.1f} s")
