"""What the chart tells the operator, read once from the environment.

Invariant: nothing else in the package reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

FIELD_MANAGER = "aurora-operator"


@dataclass(frozen=True)
class OperatorConfig:
    """The operator's own settings; a speculator's are in its spec."""

    runtime_image: str
    agent_image: str
    operator_namespace: str = "default"
    watch_namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in each speculator's namespace."""
    metrics_port: int = 8080
    liveness_port: int = 8081
    log_level: str = "INFO"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> OperatorConfig:
        env = os.environ if env is None else env
        return cls(
            runtime_image=env.get("AURORA_RUNTIME_IMAGE", "aurora-runtime:latest"),
            agent_image=env.get("AURORA_AGENT_IMAGE", "aurora-agent:latest"),
            operator_namespace=env.get("POD_NAMESPACE", "default"),
            watch_namespaces=_names(env.get("AURORA_WATCH_NAMESPACES", "")),
            pull_policy=env.get("AURORA_PULL_POLICY", "IfNotPresent"),
            pull_secrets=_names(env.get("AURORA_PULL_SECRETS", "")),
            metrics_port=int(env.get("AURORA_METRICS_PORT", "8080")),
            liveness_port=int(env.get("AURORA_LIVENESS_PORT", "8081")),
            log_level=env.get("AURORA_LOG_LEVEL", "INFO"),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
