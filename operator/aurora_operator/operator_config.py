"""The operator's own settings, which the chart passes in environment variables.

Invariant: no other module of the package reads the environment.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from functools import cached_property
from socket import gethostname
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from aurora_api.v1alpha1.status import OperatorIdentity
from aurora_operator.errors import ConfigError
from aurora_store.store_policy import StorePolicy

OPERATOR_NAME = "aurora-operator"
"""Field manager, user agent, source of events and the label ``app.kubernetes.io/managed-by``."""
MIN_LEASE_SECONDS = 3
"""Below this, one slow answer of the API server ends the leadership."""


def _parts(value: Any) -> Any:
    return tuple(filter(None, value.split(","))) if isinstance(value, str) else value


def _policy(value: Any) -> Any:
    return StorePolicy.parse(value) if isinstance(value, str) else value


def _variable(default: Any, name: str, **limits: Any) -> Any:
    return Field(default, validation_alias=name, **limits)


Names = Annotated[tuple[str, ...], BeforeValidator(_parts)]
"""Separated by commas."""


class OperatorConfig(BaseModel):
    """Settings of the operator. A speculator's settings are in its spec."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, arbitrary_types_allowed=True)

    # An image has no default: an operator that guessed one would roll every pod to another version of the code.
    runtime_image: str = _variable(..., "AURORA_RUNTIME_IMAGE")
    agent_image: str = _variable(..., "AURORA_AGENT_IMAGE")
    operator_namespace: str = _variable("default", "POD_NAMESPACE")
    pod_name: str = _variable("", "POD_NAME")
    """The operator's own pod. Empty outside of a cluster."""
    watch_namespaces: Names = _variable((), "AURORA_WATCH_NAMESPACES")
    """Empty: the whole cluster."""
    lease_name: str = _variable(OPERATOR_NAME, "AURORA_LEASE_NAME")
    """The Lease in ``operator_namespace`` that the replicas of this installation compete for."""
    lease_seconds: int = _variable(15, "AURORA_LEASE_SECONDS", ge=MIN_LEASE_SECONDS)
    """How long a leader's Lease lasts without a renewal."""
    pull_policy: str = _variable("IfNotPresent", "AURORA_PULL_POLICY")
    pull_secrets: Names = _variable((), "AURORA_PULL_SECRETS")
    """Names of Secrets in each speculator's namespace."""
    fixed_user: bool = _variable(True, "AURORA_FIXED_USER")
    """Run pods as a user of our choice. False: the cluster chooses the user, as OpenShift does for each namespace."""
    upgrade_max_concurrent: int = _variable(1, "AURORA_UPGRADE_MAX_CONCURRENT", ge=0)
    """How many speculators may restart their pods at the same time because of an upgrade of the operator. 0: none."""
    upgrade_max_failed: int = _variable(1, "AURORA_UPGRADE_MAX_FAILED", ge=0)
    """How many of these restarts may fail before no other speculator restarts."""
    scraper_namespaces: Names = _variable((), "AURORA_SCRAPER_NAMESPACES")
    """Namespaces whose pods may read the metrics of agents."""
    stores: Annotated[StorePolicy, BeforeValidator(_policy)] = _variable(StorePolicy(), "AURORA_STORE_RULES")
    """Which stores speculators may use."""
    metrics_port: int = _variable(8080, "AURORA_METRICS_PORT", ge=1)
    health_port: int = _variable(8081, "AURORA_HEALTH_PORT", ge=1)
    log_level: str = _variable("INFO", "AURORA_LOG_LEVEL")

    @property
    def installation(self) -> str:
        """``namespace/lease``: two operators with the same installation never act at the same time."""
        return f"{self.operator_namespace}/{self.lease_name}"

    @property
    def identity(self) -> OperatorIdentity:
        """This installation, as a speculator's status names it."""
        return OperatorIdentity(installation=self.installation)

    @cached_property
    def replica(self) -> str:
        """This process, as the Lease names it. A process that was restarted in the same pod is another one."""
        return f"{self.pod_name or gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> OperatorConfig:
        """An empty variable counts as not set. Raises :class:`ConfigError`, which names each wrong variable."""
        env = os.environ if env is None else env
        try:
            return cls.model_validate({name: text for name, text in env.items() if text})
        except ValidationError as error:
            faults = (f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors(include_input=False))
            raise ConfigError(f"set these variables with the values of the Helm chart: {'; '.join(faults)}") from error
