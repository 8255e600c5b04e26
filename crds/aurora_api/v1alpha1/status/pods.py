"""The inference pods in ``status``, and how the present start of their engines goes."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model, Timestamp


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


class StartStatus(Model):
    """The start of the inference pods: no pod has served clients yet since the creation or a scale-up from zero."""

    since: Timestamp | None = Field(
        default=None,
        description="When the operator first saw the start, or the spec last changed. Unset while no pods are wanted.",
    )
