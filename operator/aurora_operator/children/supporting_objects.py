"""The objects beside the workloads: ServiceAccount, keys, Service, NetworkPolicies and disruption budget.

Invariants:

- The keys are generated once. Their Secret is created and never applied, so a restarted operator cannot replace keys
  that running pods use.
- The operator's pods reach the agents' port, and so do the namespaces that the administrator named for scraping. With
  ``validation.measureOn: Replica`` the validators reach the port too. The agents demand their token for all but probes
  and metrics.
- The engine's port is open to the speculator's own namespace, to namespaces labelled ``aurora.dev/client=true``, and to
  the namespaces named for scraping, because SGLang serves its metrics on the port of its clients.
- The trainer and the validators accept no connection.
"""

from __future__ import annotations

import secrets

from aurora_api.v1alpha1.serving import ServingSpec
from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.store import StoreRole
from aurora_api.v1alpha1.validation import MeasureOn
from aurora_operator.children.metadata import (
    COMPONENT_LABEL,
    INFERENCE,
    TRAINER,
    VALIDATOR,
    Owner,
    child,
    keys_name,
    selector,
)
from aurora_operator.kubernetes_api import Object
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN
from aurora_protocol.signatures import KeyName


def service_accounts(owner: Owner, spec: SpeculatorSpec) -> list[Object]:
    """Our own ServiceAccount; none when the user names one with an identity for the pods of every role."""
    if all(spec.store.credentials.of(role).service_account_name for role in StoreRole):
        return []
    return [child(owner, "v1", "ServiceAccount", owner.name, automountServiceAccountToken=False)]


def new_keys(owner: Owner) -> Object:
    """A Secret with newly generated random keys; every call returns other keys.

    The init container of each pod derives the traffic secret from the Secret's admin key, and makes an admin key of its
    own for the pod's engine.
    """
    names = (ADMIN_KEY, AGENT_TOKEN, *(name.value for name in KeyName))
    data = {name: secrets.token_urlsafe(32) for name in names}
    return child(owner, "v1", "Secret", keys_name(owner), type="Opaque", stringData=data)


CLIENT_LABEL = {"aurora.dev/client": "true"}


def services(owner: Owner) -> list[Object]:
    """``<name>``, where clients send requests. The other pods are asked by their addresses, or not at all."""
    serve = {
        "type": "ClusterIP",
        "selector": selector(owner, INFERENCE),
        "ports": [{"name": "http", "port": 80, "targetPort": ENGINE_PORT, "protocol": "TCP"}],
    }
    return [child(owner, "v1", "Service", owner.name, INFERENCE, spec=serve)]


def disruption_budgets(owner: Owner, serving: ServingSpec, lent: int) -> list[Object]:
    """How many pods may be evicted at a time; none without a budget. Pods that do not serve never block an eviction.

    Args:
        lent: replicas that a measurement has withdrawn. They are not ready, and do not use the budget up where another
            pod goes on serving.
    """
    allowed = serving.disruption_budget.max_unavailable
    if isinstance(allowed, int) and allowed + lent < serving.replicas:
        allowed += lent
    budget = {
        "maxUnavailable": allowed,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(owner, INFERENCE)},
    }
    made = child(owner, "policy/v1", "PodDisruptionBudget", owner.name, INFERENCE, spec=budget)
    return [made] if serving.disruption_budget.enabled else []


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
