"""Two replicas of the operator on a real API server: one acts, and the other acts soon after the first one failed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.api_server import api_server
from tests.rig.operator_replicas import OperatorReplica, OperatorRig, seconds_until

LEASE_SECONDS = 8
FAILOVER_SECONDS = LEASE_SECONDS + 15
"""A standby sees the Lease unchanged for its duration. Then it starts kopf, which lists everything, on a machine that
others use too."""
SETTINGS = {"AURORA_LEASE_SECONDS": str(LEASE_SECONDS)}
START_SECONDS = 180


@pytest.fixture(scope="module", name="rig")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRig]:
    folder = tmp_path_factory.mktemp("replicas")
    with api_server() as server:
        rig = OperatorRig(server, folder)
        rig.prepare()
        rig.create_speculator()
        yield rig


@pytest.fixture(scope="module", name="pair")
def _pair(rig: OperatorRig) -> Iterator[tuple[OperatorReplica, OperatorReplica]]:
    with rig.replica("replica-a", **SETTINGS) as first, rig.replica("replica-b", **SETTINGS) as second:
        first.start()
        yield first, second


@pytest.fixture(name="replicas")
def _replicas(
    rig: OperatorRig, pair: tuple[OperatorReplica, OperatorReplica]
) -> tuple[OperatorReplica, OperatorReplica]:
    """A leader and a standby, in this order. A process that ended in the test before starts again."""
    seconds_until(lambda: any(replica.leads() for replica in pair), START_SECONDS, "a leader")
    leader, standby = pair if pair[0].leads() else pair[::-1]
    if not standby.runs:
        standby.start_as_standby(START_SECONDS)
    scale(rig, 1)
    return leader, standby


def scale(rig: OperatorRig, replicas: int, timeout_seconds: float = START_SECONDS) -> float:
    """How long it takes until the operators have passed a change of the spec on to the Deployment."""
    rig.scale(replicas)
    return seconds_until(lambda: rig.scaled_to(replicas), timeout_seconds, f"a Deployment with {replicas} replicas")


@contextlib.contextmanager
def steady_edits(rig: OperatorRig) -> Iterator[None]:
    """Change the spec several times a second, so that the leader writes all the time."""
    stopped = threading.Event()

    def edit() -> None:
        replicas = 10
        while not stopped.wait(0.3):
            replicas = 10 + (replicas + 1) % 20
            rig.scale(replicas)

    thread = threading.Thread(target=edit)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_a_standby_waits_and_takes_over_from_a_killed_leader(
    rig: OperatorRig, replicas: tuple[OperatorReplica, OperatorReplica]
) -> None:
    leader, standby = replicas
    assert (leader.leads(), standby.leads()) == (True, False)
    with steady_edits(rig):
        leader.end(signal.SIGKILL)
    assert scale(rig, 2, FAILOVER_SECONDS) < FAILOVER_SECONDS
    assert standby.leads()


def test_a_clean_stop_gives_the_lease_back(rig: OperatorRig, replicas: tuple[OperatorReplica, OperatorReplica]) -> None:
    def lease() -> dict[str, Any]:
        spec: dict[str, Any] = rig.server.get("lease", "aurora-operator", "-n", "aurora-system")["spec"]
        return spec

    leader, standby = replicas
    assert lease()["holderIdentity"].startswith(f"{leader.name}-"), "it tells people who leads"
    assert lease()["leaseDurationSeconds"] == LEASE_SECONDS
    leader.end(signal.SIGTERM)
    assert not lease().get("holderIdentity", "").startswith(f"{leader.name}-")
    seconds_until(standby.leads, FAILOVER_SECONDS, "the standby leads")
    scale(rig, 3)


def test_a_leader_that_is_cut_off_ends_and_the_standby_takes_over(
    rig: OperatorRig, replicas: tuple[OperatorReplica, OperatorReplica]
) -> None:
    leader, standby = replicas
    leader.proxy.cut()
    with steady_edits(rig):
        seconds_until(lambda: not leader.runs, FAILOVER_SECONDS + 30, "the leader ends")
        seconds_until(standby.leads, FAILOVER_SECONDS, "the standby leads")
        leader.proxy.mend()
    scale(rig, 4)
    assert any("could not renew the Lease" in line for line in leader.log_lines("warn"))


def test_a_frozen_leader_ends_when_it_wakes_up_and_changes_nothing(
    rig: OperatorRig, replicas: tuple[OperatorReplica, OperatorReplica]
) -> None:
    """What it writes in the moment before it finds out is fenced."""
    leader, standby = replicas
    with steady_edits(rig):
        leader.send(signal.SIGSTOP)
        seconds_until(standby.leads, FAILOVER_SECONDS, "the standby leads")
        leader.send(signal.SIGCONT)
        seconds_until(lambda: not leader.runs, FAILOVER_SECONDS + 30, "the old leader ends")
    scale(rig, 5)
    assert standby.leads()


def test_the_replicas_logged_no_error(rig: OperatorRig, pair: tuple[OperatorReplica, OperatorReplica]) -> None:
    """Holds after all tests above."""
    assert [line for replica in pair for line in replica.log_lines("error")] == []
