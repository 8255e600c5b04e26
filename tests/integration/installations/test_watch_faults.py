"""Faults of the API server and of its watches: the operator goes on by itself, and misses nothing.

Like a kubelet, the tests start an operator again that ended. kopf ends the process on an error in a watch other than
HTTP 410. They print how long nothing was decided: docs/results/failover.md has the figures.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_operator.errors import KubernetesError, NotFound
from aurora_operator.kubernetes_api import SERVICE, SPECULATOR
from tests.rig.api_server import api_server
from tests.rig.operator_replicas import NAME, NAMESPACE, OperatorReplica, OperatorRig, seconds_until
from tests.rig.quick_operator import LONGEST_REST_SECONDS
from tests.rig.watch_proxy import watch_proxy

START_SECONDS = 180
RECOVERY_SECONDS = 60
"""A lease that a process left behind, a restart and a first reconcile, on a machine that others use too."""
QUICK = "tests.rig.quick_operator"


@pytest.fixture(name="rig")
def _rig(tmp_path: Path) -> Iterator[OperatorRig]:
    with api_server(flags=("--etcd-compaction-interval=0",)) as server:
        rig = OperatorRig(server, tmp_path)
        rig.prepare()
        rig.create_speculator()
        yield rig


@contextlib.contextmanager
def operator(rig: OperatorRig, lease_seconds: int = 8) -> Iterator[OperatorReplica]:
    """An operator that acts. It is started again whenever it ends, as by a kubelet."""
    with rig.replica("operator", QUICK, AURORA_LEASE_SECONDS=str(lease_seconds)) as replica, kept_running(replica):
        seconds_until(lambda: rig.scaled_to(1), START_SECONDS, "the operator acts")
        yield replica


@contextlib.contextmanager
def kept_running(replica: OperatorReplica) -> Iterator[None]:
    stopped = threading.Event()

    def keep() -> None:
        while not stopped.wait(0.2):
            if not replica.runs:
                replica.start()

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def scale(rig: OperatorRig, replicas: int) -> float:
    """How long it takes until a change of the spec is applied."""
    rig.scale(replicas)
    return seconds_until(lambda: rig.scaled_to(replicas), RECOVERY_SECONDS, f"{replicas} replicas")


def has_service(rig: OperatorRig) -> bool:
    try:
        rig.api.get(SERVICE, NAMESPACE, NAME)
    except (NotFound, KubernetesError):
        return False
    return True


def test_a_cut_watch_goes_on_and_a_deletion_that_no_event_shows_heals(rig: OperatorRig) -> None:
    """The history that the watch needs is gone when the network is back: the API server answers 410, and kopf lists."""
    with operator(rig, lease_seconds=120) as replica:
        seconds_until(lambda: has_service(rig), START_SECONDS, "the Service")
        replica.proxy.cut()
        rig.api.delete(rig.api.get(SERVICE, NAMESPACE, NAME))
        rig.server.compact()
        rig.server.stop("kube-apiserver")
        rig.server.start("kube-apiserver")
        replica.proxy.mend()
        took = seconds_until(lambda: has_service(rig), LONGEST_REST_SECONDS + RECOVERY_SECONDS, "the Service again")
        print(f"the lost deletion healed after {took:.1f} s, a change then took {scale(rig, 2):.1f} s")
        assert sum("leads from now on" in line for line in replica.log_lines("info")) == 1, "the process went on"


def test_an_error_in_the_stream_ends_the_process_and_the_next_one_goes_on(rig: OperatorRig) -> None:
    with watch_proxy(rig.server) as proxy, rig.replica("operator", QUICK, AURORA_LEASE_SECONDS="8") as replica:
        text = replica.kubeconfig.read_text().replace(
            f"https://127.0.0.1:{replica.proxy.port}", f"http://127.0.0.1:{proxy.port}"
        )
        replica.kubeconfig.write_text(text)
        with kept_running(replica):
            seconds_until(lambda: rig.scaled_to(1), START_SECONDS, "the operator acts")
            # It acts on the list, before the watch begins.
            seconds_until(lambda: proxy.has_watch(SPECULATOR.plural), START_SECONDS, "the watch of the speculators")
            proxy.fail_watches()
            took = scale(rig, 2)
            print(f"an error 500 in the watches: the next change was applied after {took:.1f} s")
        assert sum("leads from now on" in line for line in replica.log_lines("info")) == 2


def test_the_operator_goes_on_after_half_a_minute_without_an_api_server(rig: OperatorRig) -> None:
    with operator(rig):
        rig.server.stop("kube-apiserver")
        time.sleep(30)
        rig.server.start("kube-apiserver")
        print(f"after 30 s without an API server, a change was applied after {scale(rig, 2):.1f} s")


def test_the_operator_follows_an_etcd_that_was_restored_from_a_backup(rig: OperatorRig, tmp_path: Path) -> None:
    """resourceVersions go back, and so does the spec."""
    with operator(rig):
        rig.server.back_up(tmp_path / "backup")
        for replicas in (2, 3, 4, 5):
            scale(rig, replicas)
        rig.server.restore(tmp_path / "backup")
        seconds_until(lambda: rig.scaled_to(1), RECOVERY_SECONDS, "the restored spec")
        print(f"after the restore, a change was applied after {scale(rig, 7):.1f} s")
