"""A NetworkPolicy that opens inference pods to this machine.

The tests' clients, and an operator that a test starts on this machine, are outside of the cluster. The operator's own
policies admit neither, and the local cluster enforces them.
"""

from __future__ import annotations

from typing import Any

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT


def policy_for_this_machine(host_address: str) -> dict[str, Any]:
    """The policy, without a namespace. ``host_address`` is how pods see this machine."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "machine-of-the-tests"},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/component": "inference"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": f"{host_address}/32"}}],
                    "ports": [{"port": port, "protocol": "TCP"} for port in (ENGINE_PORT, AGENT_PORT)],
                }
            ],
        },
    }
