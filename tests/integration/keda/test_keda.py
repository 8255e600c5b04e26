"""KEDA applies the samples ``keda.yaml`` and ``keda-schedule.yaml`` to a speculator: up, down, in a roll, to zero.

KEDA, Prometheus, the operator, Kubernetes and its HorizontalPodAutoscaler controller are real. Prometheus finds the
pods as ``pod-monitor.yaml`` asks for it, and scrapes engines that are stand-ins. The samples are changed in their
namespace, in the address of Prometheus, and in their times: with the times of a user, a test would take an hour.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from aurora_api.v1alpha1.status import RolloutPhase
from aurora_operator.kubernetes_api import POD
from tests.assets.s3 import seaweedfs
from tests.cluster.cluster import Cluster
from tests.cluster.command import wait_until
from tests.cluster.images.image_build import python_image
from tests.integration.keda import loaded_engine
from tests.integration.keda.loaded_engine import set_load
from tests.integration.operator.operator_rig import (
    EXIT_ON_SIGTERM,
    IMAGE,
    PYTHON,
    Rig,
    active,
    condition,
    install_crd,
    namespace,
    spec,
)
from tests.rig.keda.running_keda import running_keda
from tests.rig.prometheus.scrape_configs import scrape_configs
from tests.rig.prometheus.server import Prometheus, prometheus

SAMPLES = Path(__file__).parents[3] / "docs/samples/autoscaling"
NAMESPACE = "keda-test"
NAME = "chat"
"""The speculator of the samples."""
COOLDOWN_SECONDS = 10
AUTOSCALER_SECONDS = 15
"""How often Kubernetes' autoscaler looks. It adds or takes away one pod each time."""
SCALE_SECONDS = 180.0
"""Enough for three of its looks, and for pods that start and end."""


@pytest.fixture(scope="module", name="rig")
def _rig(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The operator, and a speculator with two pods that serve version 0."""
    folder = tmp_path_factory.mktemp("operator")
    install_crd(cluster)
    cluster.load_image(python_image(folder / "image.tar", IMAGE, PYTHON))
    with seaweedfs() as s3, namespace(cluster, NAMESPACE, s3):
        rig = Rig(cluster, NAMESPACE, s3, folder / "operator.log")
        body = spec(s3)
        engine, _agent = body["serving"]["template"]["spec"]["containers"]
        engine["command"][-1] = EXIT_ON_SIGTERM + loaded_engine.PROGRAM
        rig.start()
        try:
            with rig.speculator_with_a_draft(NAME, body):
                rig.wait(NAME, "two pods", lambda s: s.updated == "2/2" and condition(s, "Ready").status == "True")
                yield rig
                assert rig.runs, "the operator ended by itself"
                rig.check_log()
        finally:
            rig.kill()


@pytest.fixture(scope="module", name="scraper")
def _scraper(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the sample's PodMonitor."""
    monitor = yaml.safe_load((SAMPLES / "pod-monitor.yaml").read_text())
    monitor["metadata"]["namespace"] = NAMESPACE
    monitor["spec"]["podMetricsEndpoints"][0]["interval"] = "1s"
    configuration = {"scrape_configs": list(scrape_configs(monitor, rig.cluster.kubeconfig))}
    with prometheus(tmp_path_factory.mktemp("prometheus"), configuration) as running:
        yield running


@pytest.fixture(scope="module", name="keda", autouse=True)
def _keda(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with running_keda(rig.cluster, tmp_path_factory.mktemp("keda")):
        yield


def sample(name: str, scraper: Prometheus) -> Any:
    """A sample whose clocks are fast."""
    text = (SAMPLES / name).read_text()
    changes = {
        'namespace="default"': f'namespace="{NAMESPACE}"',
        "http://prometheus.monitoring.svc:9090": scraper.url,
        "[1m]": "[5s]",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    scaled = yaml.safe_load(text)
    scaled["metadata"]["namespace"] = NAMESPACE
    scaled["spec"]["pollingInterval"] = 2
    if "cooldownPeriod" in scaled["spec"]:
        scaled["spec"]["cooldownPeriod"] = COOLDOWN_SECONDS
    behavior = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for direction in behavior.values():
        direction["stabilizationWindowSeconds"] = 0
        for policy in direction["policies"]:
            policy["periodSeconds"] = 1
    return scaled


@contextlib.contextmanager
def applied(rig: Rig, scaled: Any) -> Iterator[None]:
    """The ScaledObject, with which KEDA is content. It is deleted with the context."""
    rig.cluster.apply(scaled)
    try:
        wait_until("KEDA", lambda: keda_says(rig, "Ready") == "True", 60, lambda: f": {keda_status(rig)}")
        yield
    finally:
        rig.cluster.kubectl("delete", "scaledobject", NAME, "-n", NAMESPACE, "--timeout=60s")


def keda_status(rig: Rig) -> Any:
    return rig.get("scaledobject", NAME).get("status", {})


def keda_says(rig: Rig, kind: str) -> str:
    """The status of a condition of the ScaledObject."""
    return next((c["status"] for c in keda_status(rig).get("conditions", ()) if c["type"] == kind), "Unknown")


def wait_for_pods(rig: Rig, count: int) -> None:
    """Wait until the speculator has this many pods, and all are ready."""
    rig.wait(NAME, f"{count} pods", lambda s: s.replicas == s.ready_replicas == count, SCALE_SECONDS)


def hpa_conditions(rig: Rig) -> dict[str, str]:
    """The conditions of the autoscaler that KEDA made: type -> status."""
    conditions = rig.get("hpa", f"keda-hpa-{NAME}")["status"].get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}


def test_keda_scales_on_running_and_on_waiting_requests_and_down_again(rig: Rig, scraper: Prometheus) -> None:
    with applied(rig, sample("keda.yaml", scraper)):
        set_load(rig, NAME, running=15)
        wait_for_pods(rig, 3)  # 30 requests, at 12 a pod
        assert hpa_conditions(rig) | {"AbleToScale": "True", "ScalingActive": "True"} == hpa_conditions(rig)
        status = rig.status(NAME)
        assert len(rig.list(POD, status.selector)) == status.replicas, "what the autoscaler takes for our pods"
        set_load(rig, NAME, queue=3)
        wait_for_pods(rig, 5)  # 9 requests wait, at 2 a pod
        set_load(rig, NAME)
        wait_for_pods(rig, 2)
    assert rig.warnings(NAME) == set()


def test_a_prometheus_without_data_takes_no_pod_away(rig: Rig, scraper: Prometheus, tmp_path: Path) -> None:
    with prometheus(tmp_path, {"scrape_configs": []}) as empty, applied(rig, sample("keda.yaml", scraper)):
        set_load(rig, NAME, running=15)
        wait_for_pods(rig, 3)
        rig.cluster.apply(sample("keda.yaml", empty))
        wait_until("the loss of data", lambda: hpa_conditions(rig).get("ScalingActive") == "False", 90)
        time.sleep(3 * AUTOSCALER_SECONDS)
        assert rig.status(NAME).replicas == 3
        set_load(rig, NAME)
        rig.cluster.apply(sample("keda.yaml", scraper))
        wait_for_pods(rig, 2)


def test_a_scale_by_keda_during_a_roll_rejects_nothing_and_the_roll_goes_on(rig: Rig, scraper: Prometheus) -> None:
    with applied(rig, sample("keda.yaml", scraper)):
        rig.patch(NAME, rollout={"canary": 1, "analysis": {"consecutiveSuccessLimit": 100}})
        rig.offer(NAME, 1, against=0)
        rig.wait(NAME, "the canary", lambda s: s.rollout.phase is RolloutPhase.CANARY and s.rollout.updated == 1)
        set_load(rig, NAME, running=15)
        wait_for_pods(rig, 3)
        status = rig.status(NAME)
        assert (status.rollout.phase, status.rejected) == (RolloutPhase.CANARY, [])
        rig.patch(NAME, rollout={"analysis": {"consecutiveSuccessLimit": 1}})
        status = rig.wait(NAME, "version 1 active", lambda s: active(s) == 1 and s.rollout.phase is RolloutPhase.IDLE)
        assert ([pod.version for pod in status.pods], status.rejected) == ([1, 1, 1], [])
        set_load(rig, NAME)
        wait_for_pods(rig, 2)
    assert rig.warnings(NAME) == set()


def test_the_schedule_ends_with_no_pod_but_not_before_the_last_request_and_begins_with_two(
    rig: Rig, scraper: Prometheus
) -> None:
    scaled = sample("keda-schedule.yaml", scraper)
    cron = next(trigger["metadata"] for trigger in scaled["spec"]["triggers"] if trigger["type"] == "cron")
    zone = ZoneInfo(cron["timezone"])

    def set_hours(start: timedelta, end: timedelta) -> None:
        """Let the office open and close at these times from now."""
        for field, offset in (("start", start), ("end", end)):
            moment = datetime.now(zone) + offset
            cron[field] = f"{moment.minute} {moment.hour} * * *"

    hour = timedelta(hours=1)
    set_hours(-hour, hour)
    with applied(rig, scaled):
        wait_until("the schedule", lambda: keda_says(rig, "Active") == "True", 60)
        wait_for_pods(rig, 2)
        set_load(rig, NAME, running=1)
        set_hours(5 * hour, 6 * hour)
        rig.cluster.apply(scaled)
        wait_for_pods(rig, 1)
        time.sleep(3 * COOLDOWN_SECONDS)
        assert rig.status(NAME).replicas == 1, "its request keeps the pod"
        set_load(rig, NAME)
        status = rig.wait(NAME, "no pod", lambda s: condition(s, "Ready").reason == "ScaledToZero", SCALE_SECONDS)
        assert (status.replicas, condition(status, "Ready").status) == (0, "True")
        wait_until("KEDA without data", lambda: keda_says(rig, "Ready") == "False", 60)  # as the how-to page says
        set_hours(timedelta(minutes=1, seconds=40), hour)
        rig.cluster.apply(scaled)
        time.sleep(COOLDOWN_SECONDS)
        assert rig.status(NAME).replicas == 0, "it is not time yet"
        wait_for_pods(rig, 2)
        wait_until("KEDA with data", lambda: keda_says(rig, "Ready") == "True", 60)
    assert rig.warnings(NAME) == set()
