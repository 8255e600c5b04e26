"""``spec`` of an AuroraSpeculator: the desired state."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.cel import rules
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.rollout import RolloutSpec
from aurora_api.v1alpha1.serving import ServingSpec
from aurora_api.v1alpha1.store import StoreSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_api.v1alpha1.validation import ValidationSpec


class SpeculatorSpec(Model):
    """The desired state: a served target, and a draft that learns from its traffic."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "self.target == oldSelf.target",
                "target is immutable: create another AuroraSpeculator for another target",
            ),
            (
                "self.store.bucket == oldSelf.store.bucket && self.store.prefix == oldSelf.store.prefix",
                "store.bucket and store.prefix are immutable: the draft's history lives there",
            ),
            (
                "has(self.store.restoreFrom) == has(oldSelf.store.restoreFrom) &&"
                " (!has(self.store.restoreFrom) || self.store.restoreFrom == oldSelf.store.restoreFrom)",
                "store.restoreFrom is immutable: create another AuroraSpeculator to go on from another root",
            ),
        )
    }

    target: TargetSpec
    store: StoreSpec
    draft: DraftSpec = Field(default_factory=DraftSpec)
    serving: ServingSpec = Field(default_factory=ServingSpec)
    capture: CaptureSpec = Field(default_factory=CaptureSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    validation: ValidationSpec = Field(default_factory=ValidationSpec)
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
