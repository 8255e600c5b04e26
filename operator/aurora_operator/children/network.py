"""Services, NetworkPolicies and the disruption budget.

Invariants:

- The operator's pods reach the agents' port, and so do the namespaces that the administrator named for scraping. With
  ``validation.measureOn: Replica`` the validators reach the port too. The agents demand their token for all but probes
  and metrics.
- The engine's port is open to the speculator's own namespace, to namespaces labelled ``aurora.dev/client=true``, and to
  the namespaces named for scraping, because SGLang serves its metrics on the port of its clients.
- The trainer and the validators accept no connection.
"""

from __future__ import annotations

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.metadata import (
    COMPONENT_LABEL,
    INFERENCE,
    TRAINER,
    VALIDATOR,
    child,
    selector,
)
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT

CLIENT_LABEL = {"aurora.dev/client": "true"}


def services(owner: Owner) -> list[Object]:
    """``<name>``, where clients send requests. The other pods are asked by their addresses, or not at all."""
    serve = {
        "type": "ClusterIP",
        "selector": selector(owner, INFERENCE),
        "ports": [{"name": "http", "port": 80, "targetPort": ENGINE_PORT, "protocol": "TCP"}],
    }
    return [child(owner, "v1", "Service", owner.name, INFERENCE, spec=serve)]


def disruption_budget(owner: Owner) -> Object:
    """Lets one pod at a time be evicted. Pods that do not serve anyway never block an eviction."""
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
    """Policies for ingress only. The cluster's administrator decides what pods may reach (the store, a model hub)."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": config.operator_namespace}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "aurora-operator"}},
    }
    on_replica = spec.validation.measure_on is MeasureOn.REPLICA
    validators = [{"podSelector": {"matchLabels": selector(owner, VALIDATOR)}}] if on_replica else []
    scrapers = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in config.scraper_namespaces
    ]
    serve = {
        "podSelector": {"matchLabels": selector(owner, INFERENCE)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": CLIENT_LABEL}}, *scrapers],
                "ports": [{"port": ENGINE_PORT, "protocol": "TCP"}],
            },
            {"from": [operator, *scrapers, *validators], "ports": [{"port": AGENT_PORT, "protocol": "TCP"}]},
        ],
    }
    closed = {
        "podSelector": {
            "matchLabels": selector(owner),
            "matchExpressions": [{"key": COMPONENT_LABEL, "operator": "In", "values": [TRAINER, VALIDATOR]}],
        },
        "policyTypes": ["Ingress"],
    }
    return [
        child(owner, "networking.k8s.io/v1", "NetworkPolicy", owner.name, INFERENCE, spec=serve),
        child(owner, "networking.k8s.io/v1", "NetworkPolicy", f"{owner.name}-learning", spec=closed),
    ]
