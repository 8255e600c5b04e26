"""The operator's own settings, which the chart passes in environment variables.

Invariant: no other module of the package reads the environment.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from socket import gethostname

from aurora_api.v1alpha1.status import OperatorIdentity
from aurora_operator.errors import ConfigError
from aurora_store.store_policy import StorePolicy

OPERATOR_NAME = "aurora-operator"
"""Field manager, user agent, source of events and the label ``app.kubernetes.io/managed-by``."""
_IMAGES = {"AURORA_RUNTIME_IMAGE": "images.runtime", "AURORA_AGENT_IMAGE": "images.agent"}
"""Variable -> the chart's value that sets it."""
MIN_LEASE_SECONDS = 3
"""Below this, one slow answer of the API server ends the leadership."""


@dataclass(frozen=True)
class OperatorConfig:
    """Settings of the operator. A speculator's settings are in its spec."""

    runtime_image: str
    agent_image: str
    operator_namespace: str = "default"
    pod_name: str = ""
    """The operator's own pod. Empty outside of a cluster."""
    watch_namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    lease_name: str = OPERATOR_NAME
    """The Lease in ``operator_namespace`` that the replicas of this installation compete for."""
    lease_seconds: int = 15
    """How long a leader's Lease lasts without a renewal."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets in each speculator's namespace."""
    fixed_user: bool = True
    """Run pods as a user of our choice. False: the cluster chooses the user, as OpenShift does for each namespace."""
    upgrade_max_concurrent: int = 1
    """How many speculators may restart their pods at the same time because of an upgrade of the operator. 0: none."""
    upgrade_max_failed: int = 1
    """How many of these restarts may fail before no other speculator restarts."""
    scraper_namespaces: tuple[str, ...] = ()
    """Namespaces whose pods may read the metrics of agents."""
    stores: StorePolicy = field(default_factory=StorePolicy)
    """Which stores speculators may use."""
    metrics_port: int = 8080
    health_port: int = 8081
    log_level: str = "INFO"

    @property
    def installation(self) -> str:
        """``namespace/lease``: two operators with the same installation never act at the same time."""
        return f"{self.operator_namespace}/{self.lease_name}"

    @property
    def identity(self) -> OperatorIdentity:
        """This installation, as a speculator's status names it."""
        return OperatorIdentity(installation=self.installation)

    @property
    def replica(self) -> str:
        """This process, as the Lease names it. A process that was restarted in the same pod is another one."""
        return f"{self.pod_name or gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> OperatorConfig:
        """Raises :class:`ConfigError` when an image is not set, or when a setting cannot be used."""
        env = os.environ if env is None else env
        return cls(
            runtime_image=_image(env, "AURORA_RUNTIME_IMAGE"),
            agent_image=_image(env, "AURORA_AGENT_IMAGE"),
            operator_namespace=env.get("POD_NAMESPACE", "default"),
            pod_name=env.get("POD_NAME", ""),
            watch_namespaces=_names(env.get("AURORA_WATCH_NAMESPACES", "")),
            lease_name=env.get("AURORA_LEASE_NAME", "") or OPERATOR_NAME,
            lease_seconds=_number(env, "AURORA_LEASE_SECONDS", default=15, minimum=MIN_LEASE_SECONDS),
            pull_policy=env.get("AURORA_PULL_POLICY", "IfNotPresent"),
            pull_secrets=_names(env.get("AURORA_PULL_SECRETS", "")),
            fixed_user=_flag(env, "AURORA_FIXED_USER", default=True),
            upgrade_max_concurrent=_number(env, "AURORA_UPGRADE_MAX_CONCURRENT", default=1, minimum=0),
            upgrade_max_failed=_number(env, "AURORA_UPGRADE_MAX_FAILED", default=1, minimum=0),
            scraper_namespaces=_names(env.get("AURORA_SCRAPER_NAMESPACES", "")),
            stores=_stores(env),
            metrics_port=_number(env, "AURORA_METRICS_PORT", default=8080),
            health_port=_number(env, "AURORA_HEALTH_PORT", default=8081),
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


def _stores(env: Mapping[str, str]) -> StorePolicy:
    rules = "AURORA_STORE_RULES"
    try:
        return StorePolicy.parse(env.get(rules, ""))
    except ValueError as error:
        raise ConfigError(f"the environment variable {rules} cannot be used: {error}") from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _flag(env: Mapping[str, str], variable: str, *, default: bool) -> bool:
    text = env.get(variable, "") or str(default).lower()
    if text not in ("true", "false"):
        raise ConfigError(f"the environment variable {variable} is {text!r}; set it to true or false")
    return text == "true"


def _number(env: Mapping[str, str], variable: str, *, default: int, minimum: int = 1) -> int:
    text = env.get(variable, "") or str(default)
    if not text.isdecimal() or int(text) < minimum:
        raise ConfigError(
            f"the environment variable {variable} is {text!r}; set it to a whole number from {minimum} up"
        )
    return int(text)
