"""The operator's own settings, which the chart passes in environment variables.

Invariant: no other module of the package reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from aurora_operator.errors import ConfigError

OPERATOR_NAME = "aurora-operator"
"""Field manager, user agent, source of events and the label ``app.kubernetes.io/managed-by``."""
_IMAGES = {"AURORA_RUNTIME_IMAGE": "images.runtime", "AURORA_AGENT_IMAGE": "images.agent"}
"""Variable -> the chart's value that sets it."""


@dataclass(frozen=True)
class OperatorConfig:
    """Settings of the operator. A speculator's settings are in its spec."""

    runtime_image: str
    agent_image: str
    operator_namespace: str = "default"
    watch_namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in each speculator's namespace."""
    upgrade_max_concurrent: int = 1
    """How many speculators may restart their pods at the same time because of an upgrade of the operator."""
    metrics_port: int = 8080
    liveness_port: int = 8081
    log_level: str = "INFO"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> OperatorConfig:
        """Raises :class:`ConfigError` when an image is not set."""
        env = os.environ if env is None else env
        return cls(
            runtime_image=_image(env, "AURORA_RUNTIME_IMAGE"),
            agent_image=_image(env, "AURORA_AGENT_IMAGE"),
            operator_namespace=env.get("POD_NAMESPACE", "default"),
            watch_namespaces=_names(env.get("AURORA_WATCH_NAMESPACES", "")),
            pull_policy=env.get("AURORA_PULL_POLICY", "IfNotPresent"),
            pull_secrets=_names(env.get("AURORA_PULL_SECRETS", "")),
            upgrade_max_concurrent=int(env.get("AURORA_UPGRADE_MAX_CONCURRENT", "1")),
            metrics_port=int(env.get("AURORA_METRICS_PORT", "8080")),
            liveness_port=int(env.get("AURORA_LIVENESS_PORT", "8081")),
            log_level=env.get("AURORA_LOG_LEVEL", "INFO"),
        )


def _image(env: Mapping[str, str], variable: str) -> str:
    """An image has no default: an operator that guessed one would roll every pod to another version of the code."""
    image = env.get(variable, "")
    if not image:
        raise ConfigError(
            f"the environment variable {variable} is not set; set it to an image, "
            f"or set {_IMAGES[variable]} in the values of the Helm chart"
        )
    return image


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
