"""``spec`` of an AuroraSpeculator: the desired state."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from aurora_api.base import Amount, Model
from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.cel import no_flag, rules
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.rollout import RolloutSpec
from aurora_api.v1alpha1.serving import ServingSpec
from aurora_api.v1alpha1.store import StoreSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_api.v1alpha1.validation import ValidationSpec

_NO_FLAG_THAT_FIXES_THE_SHAPE: Final = no_flag("self.serving.extraArgs", "--enable-two-batch-overlap", "--enable-pdmux")
"""SGLang cannot change the size of a verify round with these (`speculative/adaptive_spec_params.py:49`)."""


class Resources(Model):
    """Resources of each engine, of the trainer, and of the validator where it runs engines of its own.

    As a container's `resources`. What a template says of its container wins.
    """

    limits: dict[str, Amount] = Field(
        default_factory=dict,
        description="Most that a container may use, such as `nvidia.com/gpu: 1`. GPUs belong here.",
    )
    requests: dict[str, Amount] = Field(
        default_factory=dict, description="What a container is promised, such as `memory: 48Gi`. Unset: the limits."
    )


class SpeculatorSpec(Model):
    """The desired state: a served target, and a draft that learns from its traffic."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "self.target.model == oldSelf.target.model && self.target.dtype == oldSelf.target.dtype &&"
                " has(self.target.revision) == has(oldSelf.target.revision) &&"
                " (!has(self.target.revision) || self.target.revision == oldSelf.target.revision)",
                "the target's model, revision and dtype are immutable: create another AuroraSpeculator for another one",
            ),
            (
                "self.store.bucket == oldSelf.store.bucket && self.store.prefix == oldSelf.store.prefix",
                "store.bucket and store.prefix are immutable: the draft's history lives there",
            ),
            (
                "has(self.store.path) == has(oldSelf.store.path) &&"
                " (!has(self.store.path) || self.store.path == oldSelf.store.path)",
                "store.path is immutable: delete this AuroraSpeculator and create it again with the other path",
            ),
            (
                "self.validation.concurrencies.all(c, c <= self.serving.maxRunningRequests)",
                "validation.concurrencies must not exceed serving.maxRunningRequests: the requests beyond it would wait"
                " in the engine's queue",
            ),
            (
                f"self.draft.shape == 'Fixed' || !has(self.serving.extraArgs) || {_NO_FLAG_THAT_FIXES_THE_SHAPE}",
                "draft.shape Adaptive cannot run with --enable-two-batch-overlap or --enable-pdmux: remove the flag"
                " from serving.extraArgs, or set draft.shape to Fixed",
            ),
            (
                "self.validation.measureOn != 'Replica' || self.draft.shape == 'Adaptive'",
                "a replica with draft.shape Fixed cannot answer without speculation: set validation.measureOn to Job,"
                " or draft.shape to Adaptive",
            ),
        )
    }

    target: TargetSpec
    store: StoreSpec
    resources: Resources = Field(default_factory=Resources)
    draft: DraftSpec = Field(default_factory=DraftSpec)
    serving: ServingSpec = Field(default_factory=ServingSpec)
    capture: CaptureSpec = Field(default_factory=CaptureSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    validation: ValidationSpec = Field(default_factory=ValidationSpec)
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
