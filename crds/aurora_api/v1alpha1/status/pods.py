"""The inference pods in ``status``, and how the present start of their engines goes."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import RewrittenModel, Timestamp


class PodStatus(RewrittenModel):
    """One inference pod."""

    name: str = Field(description="Name of the pod.")
    version: int | None = Field(default=None, description="Version that the engine serves. Unset while not known.")
    checksum: str | None = Field(
        default=None, description="The engine's checksum of the loaded draft weights. Equal in all pods of one version."
    )
    state: str = Field(
        default="",
        description=(
            "Ready, Pending, Starting, Terminating or AgentUnreachable. During a swap: Staging (the pod downloads a"
            " draft), Swapping or SwapFailed. While the pod is lent to a measurement: Draining, Measuring or"
            " Returning. If a container does not run: Kubernetes' reason."
        ),
    )
    accept_length: str | None = Field(
        default=None, description="Answer tokens per verify round over about the last minute, bonus token included."
    )


class StartStatus(RewrittenModel):
    """The start in progress of the inference pods: no pod has served clients yet."""

    since: Timestamp = Field(
        description=(
            "When the start began: with its first pod or, if the API server refuses pods, with the first refusal. A"
            " changed pod template restarts the clock. A replacement pod does not restart it."
        )
    )
    deadline: Timestamp = Field(
        description=(
            "When the start is too late, by default 3900 s after `since`. From then on the condition Available has the"
            " reason StartTimeout, or StartFailed if a container fails."
        )
    )
    template: str = Field(default="", description="Digest of the pod template that is starting.")
    last_end: str = Field(
        default="",
        description=(
            "Name of the newest pod of this start that was evicted, preempted or deleted, with Kubernetes' reason, as"
            " in `chat-7d4b9 (Evicted: The node was low on resource: memory)`. Empty until the operator has seen such a"
            " pod."
        ),
    )
    last_end_created: Timestamp | None = Field(
        default=None, description="When the pod of `lastEnd` was created. An older pod does not take its place."
    )
