"""The ports of a speculator's pods and of the chart's pods, by who may connect to them from another namespace."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from tests.cluster.connection_probe import Outcome
from tests.rig.fault_injection import OPERATOR_SELECTOR
from tests.rig.installation import SYSTEM_NAMESPACE, Installation

METRICS_PORT, STORE_PORT, UNUSED_PORT = 8080, 8333, 9


@dataclass(frozen=True)
class PortsOfPods:
    """Addresses as ``host:port``."""

    engines: tuple[str, ...]
    """The engine's port of each inference pod, and the Service."""
    agents: tuple[str, ...]
    open_to_all: tuple[str, ...]
    closed_to_all: tuple[str, ...]

    @classmethod
    def of(cls, aurora: Installation, name: str) -> PortsOfPods:
        """The ports of the running pods of the speculator ``name``, of the operator and of the store."""
        own = f"app.kubernetes.io/instance={name},app.kubernetes.io/component="
        inference = _addresses(aurora, aurora.namespace, f"{own}inference")
        trainers = _addresses(aurora, aurora.namespace, f"{own}trainer")
        operators = _addresses(aurora, SYSTEM_NAMESPACE, OPERATOR_SELECTOR)
        stores = _addresses(aurora, SYSTEM_NAMESPACE, "app.kubernetes.io/name=aurora-store")
        assert all((inference, trainers, operators, stores)), "a kind of pod does not run"
        return cls(
            engines=(*(f"{pod}:{ENGINE_PORT}" for pod in inference), aurora.url(name).removeprefix("http://")),
            agents=tuple(f"{pod}:{AGENT_PORT}" for pod in inference),
            open_to_all=(*(f"{pod}:{METRICS_PORT}" for pod in operators), *(f"{pod}:{STORE_PORT}" for pod in stores)),
            closed_to_all=(
                *(f"{pod}:{port}" for pod in trainers for port in (AGENT_PORT, ENGINE_PORT, UNUSED_PORT)),
                # A port where nothing listens would refuse the connection if the packet arrived.
                *(f"{pod}:{UNUSED_PORT}" for pod in (*inference, *operators, *stores)),
            ),
        )

    def outcomes(self, *, engines: Outcome, agents: Outcome) -> dict[str, Outcome]:
        """The outcome at every port for a pod to which engines and agents are open or closed."""
        return {
            **dict.fromkeys(self.engines, engines),
            **dict.fromkeys(self.agents, agents),
            **dict.fromkeys(self.open_to_all, Outcome.CONNECTED),
            **dict.fromkeys(self.closed_to_all, Outcome.DROPPED),
        }


def _addresses(aurora: Installation, namespace: str, labels: str) -> list[str]:
    selection = ("-n", namespace, "-l", labels, "--field-selector=status.phase=Running")
    pods = aurora.cluster.get("pods", *selection)["items"]
    return [pod["status"]["podIP"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
