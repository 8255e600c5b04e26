"""How a candidate is measured: the arms, the sizes of the batches, and the gate's policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aurora_api.v1alpha1.validation import PROMPTS_NEEDED, Baseline
from aurora_protocol.evidence_records import Arm
from aurora_protocol.gate import GatePolicy
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.validation.rounds.answer_equality import NEAR_TIE_LOGIT_GAP, near_tie_bound

DRAFT_ARMS = (Arm.ACTIVE, Arm.CANDIDATE)
SHARE = 5
"""How many times the policy's fewest rounds an undecided measurement may take while a newer version waits."""


@dataclass(frozen=True)
class MeasurementPlan:
    """The gate's policy, and the arms and sizes of a measurement."""

    policy: GatePolicy
    arms: tuple[Arm, ...]
    max_rounds: int
    prompts_per_worker: int
    """Prompts per round for each concurrent worker."""
    distinct_per_worker: int = PROMPTS_NEEDED
    """Distinct prompts that the measurement needs, for each concurrent worker."""
    near_tie_bound: float = NEAR_TIE_LOGIT_GAP
    """Largest gap of two logits at which greedy answers may differ."""

    @property
    def baseline_arms(self) -> tuple[Arm, ...]:
        """Off and, where asked for, NGRAM."""
        return tuple(arm for arm in self.arms if arm not in DRAFT_ARMS)

    @property
    def prompts_needed(self) -> int:
        """Number of distinct prompts below which nothing is measured."""
        return max(self.prompts_per_worker, self.distinct_per_worker) * max(self.policy.concurrencies)

    @property
    def prompts_wanted(self) -> int:
        """Number of distinct prompts with which the first rounds, those of its share, have no prompt in common.

        More would be of older traffic, which the candidate will not serve.
        """
        rounds = min(self.max_rounds, SHARE * self.policy.min_rounds)
        return max(self.prompts_needed, self.prompts_per_worker * sum(self.policy.concurrencies) * rounds)


def measurement_plan(settings: ValidationSettings) -> MeasurementPlan:
    """The measurement that the resource asks for."""
    spec = settings.validation
    arms = [Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE]
    if Baseline.NGRAM in spec.baselines:
        arms.append(Arm.NGRAM)
    bound = near_tie_bound(settings.target.dtype)
    policy, rounds = replace(GatePolicy.of(spec), min_rounds=settings.rounds.fewest), settings.rounds
    return MeasurementPlan(policy, tuple(arms), rounds.most, rounds.prompts, rounds.distinct, bound)
