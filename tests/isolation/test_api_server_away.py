"""The operator lives through minutes without an API server, and goes on afterwards without a person."""

from __future__ import annotations

import time

import pytest

from tests.cluster.command import NotReadyError, wait_until
from tests.cluster.local.cluster import LocalCluster
from tests.isolation.idle_speculators import IdleSpeculators

pytestmark = pytest.mark.timeout(1200)
AWAY_SECONDS = 300.0
RECOVERY_SECONDS = 60.0
"""Bound of the time from the API server's return to an applied spec change. Backoff and a new lease are in it."""


def test_a_spec_change_is_applied_after_the_api_server_was_away_for_5_minutes(speculators: IdleSpeculators) -> None:
    speculators.apply("patient")
    wait_until("the Deployment exists", lambda: speculators.child("deployment", "patient") is not None, 90)
    uid = (speculators.child("deployment", "patient") or {})["metadata"]["uid"]
    local = LocalCluster(speculators.aurora.cluster.name)
    local.stop("kube-apiserver")
    time.sleep(AWAY_SECONDS)
    local.start("kube-apiserver")
    wait_until("the API server is ready", lambda: _answers(speculators), 120)
    seconds = speculators.seconds_until_applied("patient", RECOVERY_SECONDS)
    print(f"applied {seconds:.1f} s after the API server came back")
    assert (speculators.child("deployment", "patient") or {})["metadata"]["uid"] == uid


def _answers(speculators: IdleSpeculators) -> bool:
    try:
        return speculators.aurora.cluster.kubectl("get", "--raw", "/readyz") == "ok"
    except (RuntimeError, NotReadyError):
        return False
