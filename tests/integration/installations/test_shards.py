"""Two operators with a shard each: one label of the namespace decides which of them acts there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.api_server import api_server
from tests.rig.operator_replicas import NAMESPACE, OperatorReplica, OperatorRig, seconds_until

TIMEOUT_SECONDS = 180


@pytest.fixture(scope="module", name="rig")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRig]:
    with api_server() as server:
        rig = OperatorRig(server, tmp_path_factory.mktemp("shards"))
        rig.prepare()
        rig.create_speculator()
        yield rig


def label(rig: OperatorRig, shard: str) -> None:
    rig.server.kubectl("label", "namespace", NAMESPACE, f"aurora.dev/shard={shard}", "--overwrite")


def acts(rig: OperatorRig, operator: OperatorReplica, replicas: int) -> bool:
    """Whether ``operator`` has taken the speculator over, and has passed its replicas on."""
    status = rig.status()
    installation = f"aurora-system/aurora-operator-{operator.settings['AURORA_SHARD']}"
    return status.operator is not None and status.operator.installation == installation and rig.scaled_to(replicas)


def test_a_namespace_that_changes_its_shard_changes_its_operator_without_a_fight(rig: OperatorRig) -> None:
    settings = {"AURORA_LEASE_SECONDS": "4", "AURORA_WATCH_NAMESPACES": ""}
    with (
        rig.replica("east", AURORA_SHARD="east", **settings) as east,
        rig.replica("west", AURORA_SHARD="west", **settings) as west,
    ):
        east.start()
        west.start()
        seconds_until(lambda: east.leads() and west.leads(), TIMEOUT_SECONDS, "a leader for each shard")
        assert rig.deployment() is None, "the namespace belongs to no shard"
        for replicas, operator in enumerate((east, west, east), start=2):
            label(rig, operator.name)
            rig.scale(replicas)
            seconds_until(lambda: acts(rig, operator, replicas), TIMEOUT_SECONDS, operator.name)  # noqa: B023
        assert rig.events("OperatorYielded") == []
