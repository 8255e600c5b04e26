"""The inference pods in ``status``."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model


class PodStatus(Model):
    """One inference pod."""

    name: str = Field(description="Name of the pod.")
    version: int | None = Field(
        default=None, description="Version that the engine serves. Unset while not known, and without a draft."
    )
    checksum: str | None = Field(
        default=None, description="The engine's checksum of the loaded draft weights. Equal in all pods of one version."
    )
    state: str = Field(
        default="",
        description=(
            "Ready, WithoutDraft (the pod serves, and has no draft yet), Pending, Starting, Terminating or"
            " AgentUnreachable. During a swap: Staging (the pod downloads a draft), Swapping or SwapFailed. While the"
            " pod is lent to a measurement: Draining, Measuring or Returning. If a container does not run: Kubernetes'"
            " reason."
        ),
    )
