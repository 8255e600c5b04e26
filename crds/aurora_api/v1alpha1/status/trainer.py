"""The trainer's last report in ``status``."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model


class TrainingStatus(Model):
    """The trainer's last report. Refreshed at most every 30 s while it trains."""

    phase: str = Field(
        default="", description="Activity of the trainer: Starting, WaitingForTraces, Training or Suspended."
    )
    step: int = Field(default=0, description="Number of optimizer steps so far.")
    trained_tokens: int = Field(
        default=0, description=("Number of traced token positions trained on so far, each counted once.")
    )
    held_out_accept_length: str | None = Field(
        default=None,
        description=(
            "Answer tokens per verify round that the newest draft would reach on held-out requests, bonus token"
            " included."
        ),
    )
    devices: str | None = Field(
        default=None,
        description="GPUs that the trainer holds, with their kind: `1 nvidia.com/gpu`. Unset while training is"
        " suspended, or where the trainer has no GPU.",
    )
    saved_devices: str | None = Field(
        default=None,
        description="GPUs that inference pods would need more without speculation, with their kind:"
        " `0.35 nvidia.com/gpu`. The engines estimate it over about the last day, lookup included. What the plugin"
        " itself costs is not deducted, so the true saving is smaller. Unset: not known, because a ready pod has no"
        " estimate. Its engine started less than 10 minutes ago, its rounds have a Fixed shape, or its agent"
        " is silent. Also unset where the engine has no GPU.",
    )
