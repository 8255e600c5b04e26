"""One attempt at measuring a candidate: all that is known before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.validation.rounds.measurement_plan import MeasurementPlan


@dataclass(frozen=True)
class Attempt:
    """The settings, the plan and the two drafts of one attempt."""

    settings: ValidationSettings
    plan: MeasurementPlan
    drafts: Mapping[Arm, Registration]
    """The registrations of the active draft and of the candidate."""
    started: datetime

    @property
    def candidate(self) -> Registration:
        """The version that is measured."""
        return self.drafts[Arm.CANDIDATE]

    @property
    def active(self) -> Registration:
        """The version that the candidate is compared with."""
        return self.drafts[Arm.ACTIVE]
