"""Services, NetworkPolicies and the disruption budget.

Invariant: nothing but the operator's pods may reach the agents' port, and where replicas are measured their validators,
whose token the agents demand of both; the engine's port is for the speculator's own
namespace and for namespaces labelled ``aurora.dev/client=true``; trainer and validators accept no connection at all.
"""

from __future__ import annotations

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.common import COMPONENT, INFERENCE, TRAINER, VALIDATOR, child, selector
from aurora_operator.children.owner import Owner
from aurora_operator.children.trainer_statefulset import trainer_name
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT

CLIENT_LABEL = {"aurora.dev/client": "true"}


def services(owner: Owner) -> list[Object]:
    """``<name>``: where clients send requests; ``<name>-trainer``: what a StatefulSet needs, without addresses."""
    serve = {
        "type": "ClusterIP",
        "selector": selector(owner, INFERENCE),
        "ports": [{"name": "http", "port": 80, "targetPort": ENGINE_PORT, "protocol": "TCP"}],
    }
    headless = {"clusterIP": "None", "selector": selector(owner, TRAINER)}
    return [
        child(owner, "v1", "Service", owner.name, INFERENCE, spec=serve),
        child(owner, "v1", "Service", trainer_name(owner), TRAINER, spec=headless),
    ]


def disruption_budget(owner: Owner) -> Object:
    """One pod at a time may be drained; pods that do not serve anyway never block a drain."""
    return child(
        owner,
        "policy/v1",
        "PodDisruptionBudget",
        owner.name,
        INFERENCE,
        spec={
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(owner, INFERENCE)},
        },
    )


def policies(owner: Owner, spec: SpeculatorSpec, config: OperatorConfig) -> list[Object]:
    """Ingress only: what pods must reach (the store, a model hub) is the cluster's to decide."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "aurora-operator"}},
    }
    drivers = [{"podSelector": {"matchLabels": selector(owner, VALIDATOR)}}]
    if spec.validation.measure_on is not MeasureOn.REPLICA:
        drivers = []
    serve = {
        "podSelector": {"matchLabels": selector(owner, INFERENCE)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": CLIENT_LABEL}}],
                "ports": [{"port": ENGINE_PORT, "protocol": "TCP"}],
            },
            {"from": [operator, *drivers], "ports": [{"port": AGENT_PORT, "protocol": "TCP"}]},
        ],
    }
    closed = {
        "podSelector": {
            "matchLabels": selector(owner),
            "matchExpressions": [{"key": COMPONENT, "operator": "In", "values": [TRAINER, VALIDATOR]}],
        },
        "policyTypes": ["Ingress"],
    }
    return [
        child(owner, "networking.k8s.io/v1", "NetworkPolicy", owner.name, INFERENCE, spec=serve),
        child(owner, "networking.k8s.io/v1", "NetworkPolicy", f"{owner.name}-learning", spec=closed),
    ]
